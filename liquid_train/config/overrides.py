"""`key=value` of the command line, read by the type that the schema gives the key.

Where the type is text, the value is taken as it stands, whatever characters it has: quotes, commas, `${...}`, spaces.
Otherwise: numbers and true/false; null where the schema allows it; [a,b] for lists, whose items are taken as they stand
too (quotes keep a comma inside one); {a: 1} for whole sections. `~key` removes a key; `+key=value` is the same as
`key=value`. Groups (`backbone=tiny`, `experiment=quickstart`) and `hydra.*` are Hydra's own, in its grammar.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from omegaconf import DictConfig, OmegaConf

from liquid_train.config.explain import nearest
from liquid_train.config.fields import MISSING, Section
from liquid_train.config.schema_walk import Described, all_keys, find_setting, settings_of, without_annotations
from liquid_train.errors import UserError


@dataclass(frozen=True)
class Override:
    """One key set or, with value None of `removed`, taken away."""

    key: str
    value: Any = None
    removed: bool = False


@dataclass(frozen=True)
class CommandLine:
    """A job's arguments: overrides in their order, and the folders of --config-dir."""

    overrides: list[str] = field(default_factory=list)
    config_dirs: list[Path] = field(default_factory=list)

    @classmethod
    def read(cls, arguments: list[str]) -> CommandLine:
        """Raises UserError for a flag that does not exist."""
        line, rest = cls(), iter(arguments)
        for argument in rest:
            name, equals, value = argument.partition("=")
            if name == "--config-dir":
                value = value if equals else next(rest, "")
                if not value:
                    raise UserError("--config-dir needs a folder")
                line.config_dirs.append(Path(value))
            elif argument.startswith("-"):
                raise UserError(f"{argument}: no such flag; settings are given as key=value (--help lists them)")
            else:
                line.overrides.append(argument)
        return line

    def split(self, schema: type[Section], paths: list[Path], job: str) -> tuple[list[str], list[Override]]:
        """(what Hydra composes: choices of groups, hydra.*; single keys with their values)."""
        chosen, values = [], []
        groups = groups_of(paths[0] / f"{job}.yaml")
        for text in self.overrides:
            prefix = re.match(r"\+\+|\+|~", text)
            bare = text[prefix.end() if prefix else 0 :]
            key, equals, value = bare.partition("=")
            group = key.partition("@")[0]
            if "" in key.split("."):
                raise UserError(f"{text}: no such key (--help lists the keys)")
            if key.startswith("hydra."):
                chosen.append(text)
            elif _is_group(group, value, groups, schema, paths):
                _check_choice(group, value, paths)
                # + and ++ on a group that is chosen already are the same as none
                chosen.append(bare if group in groups and text.startswith("+") else text)
            elif prefix and prefix[0] == "~":
                values.append(Override(key, removed=True))
            elif not equals:
                raise UserError(f"{text}: not KEY=VALUE{nearest(text, all_keys(schema))} (--help lists the keys)")
            else:
                values.append(Override(key, parsed(find_setting(schema, key), value, key)))
        return chosen, values


def groups_of(job_file: Path) -> set[str]:
    """The groups that a job's defaults list names."""
    defaults = (yaml.safe_load(job_file.read_text(encoding="utf-8")) or {}).get("defaults", [])
    return {re.sub(r"^override |^/|@.*", "", key) for entry in defaults if isinstance(entry, dict) for key in entry}


def _is_group(name: str, value: str, groups: set[str], schema: type[Section], paths: list[Path]) -> bool:
    if name in groups:
        return not value.startswith("{")
    named = re.fullmatch(r"[\w-]+(/[\w-]+)*", name) is not None
    return named and find_setting(schema, name) is None and any((path / name).is_dir() for path in paths)


def options(group: str, paths: list[Path]) -> list[str]:
    """Names of a group's configs, sorted: NAME or FOLDER/NAME."""
    folders = [path / group for path in paths]
    return sorted({f.relative_to(d).with_suffix("").as_posix() for d in folders for f in d.rglob("*.yaml")})


def _check_choice(group: str, value: str, paths: list[Path]) -> None:
    if value.startswith("["):
        return
    known = options(group, paths)
    if value not in known:
        also = " (own ones: in ./conf or --config-dir DIR)"
        raise UserError(f"{group}={value}: no such config{nearest(value, known)}; one of {', '.join(known)}{also}")


def parsed(item: Described | None, text: str, key: str) -> Any:
    """The value that a text means for a setting; numbers stay text, which the schema's own check reads.

    Raises UserError where the text cannot be of the setting's kind at all.
    """
    if text == MISSING:
        raise UserError(f"{key}={text}: stands for a value that is missing; give another")
    if item is None:
        return free_value(text)  # an argument of a class of the user's; otherwise refused when the whole is checked
    if item.optional and text == "null":
        return None
    if item.section is not None or item.many or get_origin(item.type) is dict:
        return _by_type(item, _mapping(text, key), key)
    if get_origin(item.type) is list:
        inner = without_annotations(get_args(item.type)[0])
        if not (text.startswith("[") and text.endswith("]")):
            raise UserError(f"{key}={text}: must be a list, such as [a,b]")
        is_section = isinstance(inner, type) and issubclass(inner, Section)
        if not is_section:
            return list(_items(text[1:-1]))
        return [_section_values(inner, part, key) for part in _yaml(text, key)]
    return free_value(text) if item.type is Any else text


def free_value(text: str) -> Any:
    """A value of no declared type: as yaml reads it, with 1e-6 for a number as well; text where it is no yaml."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
        return float(value)
    return value


def _mapping(text: str, key: str) -> dict[str, Any]:
    value: Any = _yaml(text, key) if text.startswith("{") and text.endswith("}") else None
    if not isinstance(value, dict):
        raise UserError(f"{key}={text}: a section of keys; give {key}.KEY=VALUE, or all of them as {{KEY: VALUE, ...}}")
    return dict(value)


def _yaml(text: str, key: str) -> Any:
    """Lists and dictionaries as yaml writes them, and {KEY:VALUE} as Hydra does; what is in them stays text."""
    try:
        return _with_values(yaml.load(text, Loader=yaml.BaseLoader))
    except yaml.YAMLError as error:
        right = "write it as {KEY: VALUE, ...} or [a,b], with quotes where a value has , : { or ["
        raise UserError(f"{key}={text}: cannot be read; {right}") from error


def _with_values(value: Any) -> Any:
    """{"a:1": ""}, which is how yaml reads {a:1}, as {"a": "1"}."""
    if isinstance(value, list):
        return [_with_values(v) for v in value]
    if not isinstance(value, dict):
        return value
    found = {}
    for name, inner in value.items():
        key, colon, text = name.partition(":")
        if colon and inner == "":
            quoted = re.fullmatch(r"""(['"])(.*)\1""", text)
            found[key] = quoted[2] if quoted else text
        else:
            found[name] = _with_values(inner)
    return found


def _by_type(item: Described, values: dict[str, Any], key: str) -> dict[str, Any]:
    """What `{...}` says of a section, of sections by name, or of values by name: each by its own type."""
    if item.section is not None and not item.many:
        return dict(_section_values(item.section, values, key))
    if item.section is not None:
        return {name: _section_values(item.section, part, f"{key}.{name}") for name, part in values.items()}
    kind = without_annotations(get_args(item.type)[1])
    return {name: _free(part) if kind is Any else part for name, part in values.items()}


def _section_values(section: type[Section], values: Any, key: str) -> Any:
    if not isinstance(values, dict):
        return values  # refused when the whole is checked
    found = {}
    for name, value in values.items():
        item = settings_of(section).get(name)
        if isinstance(value, str):
            found[name] = parsed(item, value, f"{key}.{name}")
        elif isinstance(value, dict) and item is not None:
            found[name] = _by_type(item, value, f"{key}.{name}")
        else:
            found[name] = value if item is not None else _free(value)
    return found


def _free(value: Any) -> Any:
    """Values of no declared type in a dictionary or a list."""
    if isinstance(value, dict):
        return {k: _free(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_free(v) for v in value]
    return free_value(value) if isinstance(value, str) else value


def _items(text: str) -> Iterator[str]:
    """`a, 'b, c', <d>` -> a; b, c; <d>. A quote counts only at the beginning of an item."""
    rest = text.strip()
    while rest:
        quoted = re.match(r"""(['"])((?:\\.|(?!\1).)*)\1\s*(?:,|$)""", rest)
        if quoted:
            yield re.sub(r"\\(.)", r"\1", quoted[2])
            rest = rest[quoted.end() :].lstrip()
        else:
            item, _, rest = rest.partition(",")
            yield item.strip()
            rest = rest.lstrip()


def apply(config: DictConfig, values: list[Override], schema: type[Section]) -> None:
    """Set the keys in a composed config. Raises UserError for a key below something that is no section."""
    OmegaConf.set_struct(config, False)
    for override in values:
        *path, last = override.key.split(".")
        place: Any = config
        for part in path:
            if not OmegaConf.is_dict(place):
                break
            if place.get(part) is None:  # not there, null, or still to be given
                place[part] = {}
            place = place[part]
        if not OmegaConf.is_dict(place) or (override.removed and last not in place):
            raise UserError(f"{override.key}: no such key{nearest(override.key, all_keys(schema))}")
        if override.removed:
            _remove(place, last, override.key, schema)
        elif isinstance(override.value, dict) and OmegaConf.is_dict(place.get(last)):
            place[last] = OmegaConf.merge(place[last], literal(override.value))
        else:
            place[last] = literal(override.value)


def _remove(place: DictConfig, last: str, key: str, schema: type[Section]) -> None:
    """Take away what a user named (data.sources.NAME); a setting of the schema goes back to its default."""
    parent = find_setting(schema, key.rpartition(".")[0]) if "." in key else None
    item = find_setting(schema, key)
    if item is None or (parent is not None and (parent.many or parent.section is None)):
        del place[last]
    else:
        default = item.default
        place[last] = asdict(default) if is_dataclass(default) and not isinstance(default, type) else default


def literal(value: Any) -> Any:
    """Text in which `${...}` stands for itself: what OmegaConf is given in place of a value of the command line."""
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda m: m[1] * 2 + r"\${", value)
    if isinstance(value, list):
        return [literal(v) for v in value]
    if isinstance(value, dict):
        return {k: literal(v) for k, v in value.items()}
    return value
