"""Values as they are written on the command line."""

from __future__ import annotations

from typing import Any


def as_text(value: Any) -> str:
    """null, true, [a,b], {a: 1}, and everything else as it is printed."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{','.join(as_text(v) for v in value)}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {as_text(v)}" for k, v in value.items()) + "}"
    return str(value)
