"""`liquid JOB --help [KEY]`: every setting by section, with its type, default, choices and meaning, read from the
schema."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

from liquid_train.config.explain import nearest
from liquid_train.config.fields import MISSING, Section, registry
from liquid_train.config.overrides import groups_of, options
from liquid_train.config.schema_walk import Described, all_keys, settings_of, walk
from liquid_train.config.text import as_text
from liquid_train.errors import UserError

WIDTH = 110  # columns


def job_help(job: str, schema: type[Section], paths: list[Path], key: str | None = None) -> str:
    """The page of a job, or what is known of one key or section. Raises UserError for a key that does not exist."""
    if key is not None:
        return key_help(schema, paths, key)
    purpose = " ".join((schema.__doc__ or "").split())
    lines = [f"usage: liquid {job} [KEY=VALUE ...] [--config-dir DIR] [--cfg]", "", purpose, ""]
    lines += [
        "groups (GROUP=NAME; own ones: ./conf/GROUP/NAME.yaml, or below --config-dir DIR):",
        *_groups(job, paths),
        "",
    ]
    lines += _section(schema, "")
    lines += [
        "  liquid " + job + " --help KEY     one key or section",
        "  liquid " + job + " ... --cfg      print the whole config that these arguments make, and stop",
    ]
    return "\n".join(lines)


def key_help(schema: type[Section], paths: list[Path], key: str) -> str:
    """One key, or a section with its keys."""
    found = [(k, item) for k, item in walk(schema) if k == key or k.startswith(f"{key}.")]
    if not found:
        known = all_keys(schema)
        raise UserError(f"--help {key}: no such key{nearest(key, known)}; --help alone lists all")
    lines = [line for k, item in found for line in _entry(k, item, detailed=True)]
    if any((path / key).is_dir() for path in paths):
        lines += ["", *_wrapped(f"  {key}=NAME  ", ", ".join(options(key, paths)))]
    return "\n".join(lines)


def _groups(job: str, paths: list[Path]) -> list[str]:
    names = sorted(groups_of(paths[0] / f"{job}.yaml"))
    return [line for name in names for line in _wrapped(f"  {name + '=':<12}", ", ".join(options(name, paths)))]


def _section(schema: type[Section], prefix: str) -> list[str]:
    """Plain settings first, then the sections in them."""
    plain = [(n, i) for n, i in settings_of(schema).items() if i.section is None]
    lines = [line for name, item in plain for line in _entry(f"{prefix}{name}", item)]
    for name, item in settings_of(schema).items():
        if item.section is not None:
            inner = f"{prefix}{name}.{'NAME.' if item.many else ''}"
            about = item.help or item.section.__doc__ or ""
            lines += ["", *_wrapped(f"{inner}*  ", " ".join(about.split())), *_section(item.section, inner)]
    return [*lines, ""] if not prefix else lines


def _entry(key: str, item: Described, detailed: bool = False) -> Iterator[str]:
    yield f"  {key}  ({', '.join(_facts(item))})"
    text = item.help + (f"; null: {item.null}" if item.null else "")
    yield from textwrap.wrap(text, WIDTH, initial_indent="      ", subsequent_indent="      ")
    if item.kinds and detailed:
        yield f"      kinds: {', '.join(registry(item.kinds).names())}, or the import path of your own"


def _facts(item: Described) -> list[str]:
    if item.section is not None:
        return ["sections by a name of yours" if item.many else "section"]
    facts = [" | ".join(item.choices) if item.choices else type_name(item.type)]
    facts += [_bounds(item.bounds)] if item.bounds else []
    return [*facts, "required" if item.default == MISSING else f"default {as_text(item.default)}"]


def _bounds(bounds: dict[str, float]) -> str:
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    return " and ".join(f"{signs[name]} {value:g}" for name, value in bounds.items())


def type_name(hint: Any) -> str:
    """`text`, `whole number`, `number`, `true or false`, `list of ...`, `... by name`."""
    names = {str: "text", int: "whole number", float: "number", bool: "true or false"}
    if get_origin(hint) is list:
        return f"list of {type_name(get_args(hint)[0])}"
    if get_origin(hint) is dict:
        return f"{type_name(get_args(hint)[1])} by name"
    if hasattr(hint, "__metadata__"):
        return type_name(get_args(hint)[0])
    if isinstance(hint, type) and issubclass(hint, Section):
        return "{" + ", ".join(settings_of(hint)) + "}"
    return names.get(hint, "any value")


def _wrapped(head: str, text: str) -> list[str]:
    return textwrap.wrap(head + text, WIDTH, subsequent_indent=" " * min(len(head), 16), break_on_hyphens=False)
