"""What is wrong with a config, in one line: the key, the value, and what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from liquid_train.config.fields import Section
from liquid_train.config.schema_walk import Described, all_keys, find_setting, settings_of
from liquid_train.config.text import as_text

TYPES = {"int": "a whole number", "float": "a number", "bool": "true or false", "list": "a list, such as [a,b]"}


def nearest(key: str, known: Iterable[str]) -> str:
    """`; did you mean ...?` for a key that almost exists."""
    close = difflib.get_close_matches(key, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close and close[0] != key else ""


def explained(error: ValidationError, schema: type[Section]) -> str:
    """Everything that pydantic found, the first thing in full."""
    lines = list(dict.fromkeys(_line(e, schema) for e in error.errors()))
    more = f" (and {len(lines) - 1} more: {'; '.join(lines[1:4])})" if len(lines) > 1 else ""
    return lines[0] + more


def _line(error: Any, schema: type[Section]) -> str:
    location = [str(part) for part in error["loc"]]
    key, value, kind = ".".join(location), error["input"], error["type"]
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        while isinstance(value, dict) and len(value) == 1:  # a whole section that does not exist
            ((inner, value),) = value.items()
            key = f"{key}.{inner}"
        return f"{key}: no such key{nearest(key, _siblings(schema, location))}"
    item = find_setting(schema, key)
    while item is None and location:  # inside a list: the key is that of the list
        location.pop()
        item = find_setting(schema, ".".join(location))
    if kind == "dataclass_type":
        return f"{key}={as_text(value)}: a section of keys, such as {key}.KEY=VALUE"
    return f"{key}={as_text(value)}: {_right(error, item)}{_or_null(item)}"


def _right(error: Any, item: Described | None) -> str:
    """What would be right."""
    context, kind = error.get("ctx", {}), error["type"]
    if kind == "literal_error":
        choices = item.choices if item is not None and item.choices else (context["expected"],)
        return f"one of {', '.join(choices)}"
    both = item.bounds if item is not None else {}
    if {"ge", "le"} <= both.keys() and (both["ge"], both["le"]) == (0, 1):
        return "a share between 0 and 1"
    if {"ge", "le"} <= both.keys():
        return f"between {both['ge']:g} and {both['le']:g}"
    for name, words in (
        ("ge", "must be {} or more"),
        ("gt", "must be above {}"),
        ("le", "must be at most {}"),
        ("lt", "must be below {}"),
    ):
        if name in context:
            return words.format(f"{context[name]:g}")
    if kind == "string_too_short":
        return "must not be empty"
    if kind in ("too_short", "too_long"):
        least, most = context.get("min_length"), context.get("max_length")
        return (
            f"must have {f'{least} or more' if least is not None else f'at most {most}'} entries, not "
            f"{context['actual_length']}"
        )
    for name, words in TYPES.items():
        if kind.startswith(name):
            return f"must be {words}"
    if kind == "finite_number":
        return "must be a finite number"
    return str(error["msg"])


def _or_null(item: Described | None) -> str:
    return f", or null: {item.null}" if item is not None and item.null else ""


def _siblings(schema: type[Section], location: list[str]) -> list[str]:
    """Keys that might have been meant: those of the same section with its own names, and all others."""
    section, prefix = schema, ""
    for n, part in enumerate(location[:-1]):
        item = settings_of(section).get(part)
        if item is None or item.section is None:
            break
        if item.many and n + 1 < len(location) - 1:
            prefix += f"{part}.{location[n + 1]}."
            return [prefix + name for name in settings_of(item.section)]
        section, prefix = item.section, f"{prefix}{part}."
    return [*(prefix + name for name in settings_of(section)), *all_keys(schema)]
