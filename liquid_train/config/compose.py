"""From a job's name and its command line to its settings: Hydra composes, pydantic checks, the sections check
themselves.

conf/<job>.yaml, its groups, ./conf, --config-dir     Hydra (groups, experiments, interpolation)
    + key=value, read by the type that the schema gives the key (overrides.py)
    -> the job's dataclass, or UserError with the key, the value and what would be right
"""

from __future__ import annotations

import os
import re
from dataclasses import asdict, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from liquid_train.config.explain import explained, nearest
from liquid_train.config.fields import MISSING, Section, registry
from liquid_train.config.overrides import CommandLine, apply
from liquid_train.config.schema import TrainJob
from liquid_train.config.schema_walk import all_keys, settings_of
from liquid_train.errors import UserError
from liquid_train.jobs import JOBS


def job_schema(job: str) -> type[Section]:
    """The dataclass of a job. Raises UserError for an unknown one."""
    if job not in JOBS:
        raise UserError(f"unknown job {job!r}; one of {', '.join(JOBS)}")
    module, _, name = JOBS[job].settings.partition(":")
    return cast(type[Section], getattr(import_module(module), name))


def conf_dir() -> Path:
    """conf/ inside the installed package, else next to it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def search_path(line: CommandLine) -> list[Path]:
    """Where groups are looked for: the installed conf/, then ./conf, then --config-dir. UserError for one that is not
    there."""
    for given in line.config_dirs:
        if not given.is_dir():
            raise UserError(
                f"--config-dir {given}: no such folder; give one that holds groups such as backbone/NAME.yaml"
            )
    own = [*([Path("conf")] if Path("conf").is_dir() else []), *line.config_dirs]
    found = [conf_dir()]
    return found + [p.resolve() for p in own if p.resolve() != found[0]]


def load(job: str, arguments: list[str]) -> Any:
    """The settings of a job from its command line, `key=value ...`. Raises UserError whatever was wrong."""
    schema = job_schema(job)
    line = CommandLine.read(arguments)
    config = typed(schema, compose_config(job, schema, line))
    expand_home(config)
    check(config)
    for name in JOBS[job].checks:
        module, _, function = name.partition(":")
        getattr(import_module(module), function)(config)
    return config


def compose_config(job: str, schema: type[Section], line: CommandLine) -> dict[str, Any]:
    """Everything that was set, as nested dictionaries: groups first, then single keys of the command line."""
    paths = search_path(line)
    chosen, values = line.split(schema, paths, job)
    # keys and defaults only: types are checked after composing, so that a new source can be added key by key
    ConfigStore.instance().store(name=f"{job}_schema", node=asdict(schema()))
    GlobalHydra.instance().clear()
    further = ",".join(_quoted(f"file://{path}") for path in paths[1:])
    try:
        with initialize_config_dir(str(paths[0]), version_base="1.3"):
            composed = compose(job, overrides=[f"hydra.searchpath=[{further}]", *chosen])
        apply(composed, values, schema)
        return cast(dict[str, Any], OmegaConf.to_container(composed, resolve=True))
    except HydraException as error:
        raise UserError(_hydra_message(error, schema, chosen)) from error
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or getattr(error, "key", None) or job
        raise UserError(f"{key}: {str(error).splitlines()[0]}") from error


def _quoted(text: str) -> str:
    """Text in Hydra's grammar: a backslash escapes only a quote, or the backslashes right before one."""
    return "'" + re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), text) + "'"


_adapters: dict[type, TypeAdapter[Any]] = {}  # by schema: made once, in 50 ms


def typed(schema: type[Section], values: dict[str, Any]) -> Any:
    """Nested dictionaries as the schema's dataclasses: types and bounds checked, unknown keys refused, missing ones
    named."""
    if schema not in _adapters:
        _adapters[schema] = TypeAdapter(schema)
    try:
        return _adapters[schema].validate_python(_kinds_by_target(schema, values))
    except ValidationError as error:
        raise UserError(explained(error, schema)) from error


def _kinds_by_target(schema: Any, values: Any) -> Any:
    """`_target_` of a section (Hydra's convention for a class of one's own) as the setting that names its kind.

    Keys next to it that the section does not have are the arguments of that class.
    """
    if not isinstance(values, dict):
        return values
    if not is_dataclass(schema):
        return {k: _kinds_by_target(schema, v) for k, v in values.items()} if schema is not None else values
    assert isinstance(schema, type) and issubclass(schema, Section)
    known = {f.name: f for f in fields(schema)}
    found = {k: v for k, v in values.items() if k != "_target_"}
    if "_target_" in values and schema.kind_key in known:
        found[schema.kind_key] = values["_target_"]
        if schema.options_key in known:
            defaults = asdict(schema())
            own = {
                k: found.pop(k)
                for k, v in list(found.items())
                if k not in known or (k in schema.kind_settings and v != defaults[k])
            }
            found[schema.options_key] = {**found.get(schema.options_key, {}), **own}
    elif "_target_" in values:
        found["_target_"] = values["_target_"]
    inner = settings_of(schema)
    return {k: _kinds_by_target(inner[k].section, v) if k in inner else v for k, v in found.items()}


def expand_home(config: Any) -> None:
    """`~/...` of every path as the home folder: a shell leaves it as it is in KEY=~/..."""
    for name, item in settings_of(type(config)).items():
        value = getattr(config, name)
        if item.is_path and isinstance(value, str) and (value == "~" or value.startswith("~/")):
            setattr(config, name, os.path.expanduser(value))
        elif item.section is not None:
            for section in value.values() if isinstance(value, dict) else [value]:
                if isinstance(section, Section):
                    expand_home(section)


def check(config: Any) -> None:
    """Everything that a type and a bound cannot say. Raises UserError for the first thing that is wrong."""
    for key, item, value in _settings(config, ""):
        if value == MISSING:
            raise UserError(f"{key} has no value; give {key}=...")
        if value == "" and item.is_path:
            raise UserError(f"{key} is empty; give a path" + (f", or null: {item.null}" if item.null else ""))
        for name in (
            (value if isinstance(value, list) else [value]) if item.kinds and value not in (None, "auto") else []
        ):
            if "." in name or name not in registry(item.kinds).names():
                registry(item.kinds).find(name, key)
    _check_sections(config, "")


def _settings(config: Any, prefix: str) -> Any:
    """(dotted key, description, value) of every setting that is no section itself."""
    for name, item in settings_of(type(config)).items():
        value, key = getattr(config, name), f"{prefix}{name}"
        if item.section is None:
            yield key, item, value
        elif isinstance(value, dict):
            for inner, section in value.items():
                yield from _settings(section, f"{key}.{inner}.")
        elif isinstance(value, Section):
            yield from _settings(value, f"{key}.")


def _check_sections(config: Any, prefix: str) -> None:
    for name, item in settings_of(type(config)).items():
        value = getattr(config, name)
        inner = value.items() if isinstance(value, dict) and item.section else [("", value)]
        for key, section in inner:
            if isinstance(section, Section):
                _check_sections(section, f"{prefix}{name}.{key + '.' if key else ''}")
    config.check(prefix)


def _hydra_message(error: Exception, schema: type[Section], chosen: list[str]) -> str:
    """The telling lines of a Hydra error, with the nearest key that exists."""
    text = " ".join(str(error).split())
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown:
        return f"{unknown[1]}: no such key{nearest(unknown[1], all_keys(schema))}"
    missing = re.search(r"Could not find '([^']+)'", text)
    if missing:
        return f"{missing[1]}: no such config; liquid JOB --help lists the groups and their configs"
    own = next((o for o in chosen if o.startswith("hydra.") and o in str(error)), None)
    return f"{own or ' '.join(chosen)}: {text.split(' See https')[0].split(' Config search path')[0]}"


def read_config(run_dir: Path) -> TrainJob:
    """The config that a run was trained with. Raises UserError where there is none."""
    file = run_dir / "config.yaml"
    if not file.is_file():
        raise UserError(f"{run_dir}: no config.yaml there; give the folder of a run")
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not readable as yaml: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"{file}: not a config, but {type(values).__name__}")
    try:
        return cast(TrainJob, typed(TrainJob, values))
    except UserError as error:
        raise UserError(f"{file}: {error}") from error


def to_yaml(config: Any) -> str:
    """A config dataclass as yaml text, every value as it is: read_config reads it back."""
    return str(yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True, width=10**6))
