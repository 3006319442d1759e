"""What the schema says of a key: its type, bounds, default and help, for reading overrides, for messages and for
--help."""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic.fields import FieldInfo

from liquid_train.config.fields import Section


@dataclass(frozen=True)
class Described:
    """One setting. type: without None and annotations. section: the dataclass where it is a section or holds sections
    by name. many: it holds sections, or values, by names of the user's. optional: null is a value."""

    name: str
    type: Any
    default: Any
    help: str
    optional: bool
    section: type[Section] | None
    many: bool
    info: FieldInfo | None

    def _extra(self, key: str) -> Any:
        extra = self.info.json_schema_extra if self.info is not None else None
        return extra.get(key) if isinstance(extra, dict) else None

    @property
    def null(self) -> str | None:
        """What null means."""
        null: str | None = self._extra("null")
        return null

    @property
    def kinds(self) -> str | None:
        """The registry whose names it takes."""
        kinds: str | None = self._extra("kinds")
        return kinds

    @property
    def is_path(self) -> bool:
        return bool(self._extra("is_path"))

    @property
    def choices(self) -> tuple[str, ...]:
        return get_args(self.type) if get_origin(self.type) is Literal else ()

    @property
    def bounds(self) -> dict[str, float]:
        """{"gt", "ge", "lt", "le"} as far as they are set."""
        found: dict[str, float] = {}
        for constraint in self.info.metadata if self.info is not None else ():
            found |= {k: v for k in ("gt", "ge", "lt", "le") if (v := getattr(constraint, k, None)) is not None}
        return found


_known: dict[type, dict[str, Described]] = {}  # by schema


def settings_of(schema: type[Section]) -> dict[str, Described]:
    """The settings of one section by name."""
    if schema in _known:
        return _known[schema]
    hints = get_type_hints(schema, include_extras=True)
    found = {}
    for f in fields(schema):
        default = f.default_factory() if f.default_factory is not NO_DEFAULT else f.default
        found[f.name] = _described(f.name, hints[f.name], default)
    _known[schema] = found
    return found


def _described(name: str, hint: Any, default: Any) -> Described:
    info = None
    if get_origin(hint) is Annotated:
        info = next((m for m in hint.__metadata__ if isinstance(m, FieldInfo)), None)
        hint = get_args(hint)[0]
    optional = False
    if get_origin(hint) in (Union, types.UnionType):
        rest = [a for a in get_args(hint) if a is not type(None)]
        optional, hint = len(rest) < len(get_args(hint)), rest[0]
    many = get_origin(hint) is dict
    inner = without_annotations(get_args(hint)[1]) if many else hint
    section = inner if isinstance(inner, type) and is_dataclass(inner) else None
    text = (info.description if info is not None else None) or (section.__doc__ or "" if section and not many else "")
    return Described(name, hint, default, " ".join(text.split()), optional, section, many, info)


def without_annotations(hint: Any) -> Any:
    """A type without its annotations."""
    return without_annotations(get_args(hint)[0]) if get_origin(hint) is Annotated else hint


def find_setting(schema: type[Section], key: str) -> Described | None:
    """The setting of a dotted key, names of the user's (data.sources.NAME.path) included; None where there is none."""
    first, _, rest = key.partition(".")
    item = settings_of(schema).get(first)
    if item is None or not rest:
        return item
    if item.many:
        name, _, deeper = rest.partition(".")
        value = get_args(item.type)[1]
        if item.section is None:  # {text: value}: the rest of the key is the name, or a path into a free dictionary
            return _described(rest, value, None)
        return find_setting(item.section, deeper) if deeper else _described(name, value, None)
    return find_setting(item.section, rest) if item.section is not None else None


def all_keys(schema: type[Section], prefix: str = "") -> list[str]:
    """Dotted names of every key of a schema; NAME stands for names of the user's."""
    return [key for key, _ in walk(schema, prefix)]


def walk(schema: type[Section], prefix: str = "") -> Iterator[tuple[str, Described]]:
    """(dotted key, setting) of everything, a section before what is in it."""
    for name, item in settings_of(schema).items():
        yield f"{prefix}{name}", item
        if item.section is not None:
            yield from walk(item.section, f"{prefix}{name}.{'NAME.' if item.many else ''}")
