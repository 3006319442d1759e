"""What else of a row KEY.json keeps (`tokenize.keep`): keys, urls, scores, hashes of the data set that was read."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from data_prep.source import SourceRow
from data_prep.sources._captions import value_of


def kept(row: dict[str, Any], names: Iterable[str] | None) -> dict[str, Any]:
    """{name: value} of what the row has; "a.b" stays b in the object a.

    What JSON has no form for becomes text: bytes as hexadecimal digits, times as ISO 8601. null and what is no finite
    number are left out.
    """
    found: dict[str, Any] = {}
    for name in names or ():
        value = _as_json(value_of(row, name))
        if value is None:
            continue
        inner, parts = found, [name] if name in row else name.split(".")
        for part in parts[:-1]:
            inner = inner.setdefault(part, {})
        inner[parts[-1]] = value
    return found


def with_kept(made: SourceRow, row: dict[str, Any], names: Iterable[str] | None) -> SourceRow:
    """The SourceRow that `row` made, with what is kept of that; what it says of its own comes first."""
    return replace(made, info={**kept(row, names), **made.info}) if names else made


def _as_json(value: Any) -> Any:
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, list):
        return [_as_json(entry) for entry in value]
    if isinstance(value, dict):
        return {str(key): _as_json(entry) for key, entry in value.items()}
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
