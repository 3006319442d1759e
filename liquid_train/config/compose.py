"""Hydra composes yaml files and overrides; the result is merged into the dataclasses of the job."""

from __future__ import annotations

import difflib
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from data_prep.settings import TokenizeJob
from evals.settings import EvalJob
from liquid_train.config.schema import PlanJob, TrainJob
from liquid_train.errors import UserError
from liquid_train.generate.settings import GenerateJob
from liquid_train.serve.settings import ServeJob

JOBS: dict[str, type] = {
    "train": TrainJob,
    "plan": PlanJob,
    "tokenize": TokenizeJob,
    "generate": GenerateJob,
    "serve": ServeJob,
    "eval": EvalJob,
}


def conf_dir() -> Path:
    """conf/ inside the installed package, else next to it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def package_path(path: str) -> Path:
    """A path from the config; `package:NAME` is NAME inside the installed package."""
    return (
        Path(__file__).resolve().parents[1] / path.removeprefix("package:")
        if path.startswith("package:")
        else Path(path)
    )


def load(job: str, overrides: list[str]) -> Any:
    """Compose conf/<job>.yaml with overrides into its dataclass.

    Raises UserError with the key, the value and what would be right, whatever was wrong.
    """
    if job not in JOBS:
        raise UserError(f"unknown job {job!r}; one of {', '.join(JOBS)}")
    GlobalHydra.instance().clear()
    # Keys and defaults only: types are checked after composing, so that a new source can be added key by key
    ConfigStore.instance().store(name=f"{job}_schema", node=OmegaConf.to_container(OmegaConf.structured(JOBS[job])))
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            composed = compose(job, overrides=overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_hydra_message(error, JOBS[job])) from error
    config = typed(JOBS[job], composed)
    from liquid_train.config.checks import CHECKS  # it needs the dataclasses above

    CHECKS[job](config)
    return config


def typed(schema: type, composed: DictConfig | ListConfig) -> Any:
    """Merge a composed config into the schema: types checked, unknown keys refused, missing ones named."""
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), composed)
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            raise UserError(f"{missing[0]} has no value; give {missing[0]}=...")
        return OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or getattr(error, "key", None) or ""
        text = str(error).split("\n")[0]
        raise UserError(f"{key}: {text}{_suggest(str(key), schema)}") from error


def read_config(run_dir: Path) -> TrainJob:
    """The config that a run was trained with. Raises UserError where there is none."""
    file = run_dir / "config.yaml"
    if not file.is_file():
        raise UserError(f"{run_dir}: no config.yaml there; give the folder of a run")
    config: TrainJob = typed(TrainJob, OmegaConf.load(file))
    return config


def all_keys(schema: type, prefix: str = "") -> list[str]:
    """Dotted names of every key of a schema, nested dataclasses included."""
    names = []
    for f in fields(schema):
        default = f.default_factory() if callable(f.default_factory) else f.default
        names.append(prefix + f.name)
        if is_dataclass(default):
            names += all_keys(type(default), f"{prefix}{f.name}.")
    return names


def _suggest(key: str, schema: type) -> str:
    close = difflib.get_close_matches(key, all_keys(schema), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close and close[0] != key else ""


def _hydra_message(error: Exception, schema: type) -> str:
    """The telling lines of a Hydra error and of its cause, with the nearest key that exists."""
    text = " ".join(str(error).split())
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown:
        return f"{unknown[1]}: no such key{_suggest(unknown[1], schema)}"
    merging = re.search(r"Error merging override \+*([^=\s]+)=?(\S*)", text)
    cause = str(error.__cause__ or "").split("\n")[0]
    if merging and cause:
        missing = re.match(r"Key '([^']+)' not in", cause)
        return f"{merging[1]}: no such key{_suggest(merging[1], schema)}" if missing else f"{merging[1]}: {cause}"
    return text.split(" Config search path")[0]


def to_yaml(config: Any) -> str:
    """A config dataclass as yaml text."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def from_yaml(schema: type, path: str | Path) -> Any:
    """Read back what to_yaml wrote."""
    return typed(schema, OmegaConf.create(Path(path).read_text()))
