"""What must hold between the settings of `liquid eval`. What single metrics need, they say themselves
(evals/metric.py)."""

from __future__ import annotations

from pathlib import Path

from evals.chosen import AUTO, find_all, metric_names, refuse_files
from evals.metric import Metric, value_of
from evals.paper.sheet import SHEETS
from evals.settings import EvalJob
from liquid_train.config.fields import require
from liquid_train.config.text import as_text

# folders that are looked at wherever they are given: key, what is in it, whether it is a model's
FOLDERS = (
    ("vqascore.model", "a visual question answering model in Hugging Face format", True),
    ("clipscore.model", "a CLIP model in Hugging Face format", True),
    ("reference.folder", "real images, as MJHQ-30K's", False),
    ("wise.prompts", "WISE's three JSON files", False),
    ("images", "image files", False),
)


def check_eval(c: EvalJob) -> None:
    """Raises UserError with the key, the value and what would be right."""
    require(bool(c.metrics), f"metrics is empty; give one or more of {AUTO}, {', '.join(metric_names())}")
    asked = find_all([name for name in c.metrics if name != AUTO], "metrics", c)
    check_files_to_score(c, asked)
    if c.sheet is None:
        for metric in asked:
            metric.check()
        kind = c.features.kind
        require(kind == "vq" or c.features.path is not None, f"features.kind={kind} needs features.path=PATH")
    else:  # it lists what was not given
        require(c.sheet in SHEETS, f"sheet={c.sheet}: one of {', '.join(SHEETS)}")
        shown = SHEETS[c.sheet]
        others = [name for name in c.metrics if name not in shown]
        places = f"{', '.join(others)} have no place on evals={c.sheet}"
        require(not others, f"metrics: {places}; it shows {', '.join(shown)}")
    check_own(c, asked)
    check_folders(c)


def check_own(c: EvalJob, asked: list[Metric]) -> None:
    """own.NAME is read by the metric of that name."""
    names = [metric.name for metric in asked]
    for name, settings in c.own.items():
        require(isinstance(settings, dict), f"own.{name}={as_text(settings)}: give own.{name}.KEY=VALUE")
        chosen = f"metrics={as_text(c.metrics)} measures no {name}"
        require(name in names, f"own.{name}: {chosen}; name it there (docs/extending.md), or leave own.{name} out")


def check_files_to_score(c: EvalJob, asked: list[Metric]) -> None:
    """What is in files already is scored without a model, everything else with one."""
    if c.watch is not None:
        for key in ("checkpoint", "output", "sheet"):
            value = value_of(c, key)
            remedy = "every checkpoint is evaluated into the run's evals/"
            require(value is None, f"watch={c.watch} goes without {key}={value}: {remedy}")
    if c.checkpoint is not None or c.watch is not None:
        refuse_files(c, asked)
        return
    keys = {metric.name: file_key for metric in asked if (file_key := metric.scores_files())}
    given = ", ".join(keys.values())
    require(bool(given), "checkpoint has no value; give checkpoint=RUN, or watch=RUN to follow a training")
    others = [name for name in c.metrics if name.rpartition(".")[2] not in keys]
    without = f"checkpoint has no value, and metrics={','.join(others)} need one"
    require(not others, f"{without}; leave them out to score {given}")
    require(c.output is not None, f"output has no value, and {given} belong to no run; give output=DIR")


def check_folders(c: EvalJob) -> None:
    """Models and folders that were given, also where no chosen metric reads them."""
    for key, what, is_model in FOLDERS:
        path = value_of(c, key)
        require(path is None or Path(path).is_dir(), f"{key}={path}: no such folder; give that of {what}")
        found = path is None or not is_model or (Path(path) / "config.json").is_file()
        require(found, f"{key}={path}: no config.json there; give the folder of {what}")
