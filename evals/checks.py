"""What must hold between the settings of `liquid eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evals.settings import BENCHMARKS, METRICS, SHEETS, EvalJob
from liquid_train.config.fields import require


def check_eval(c: EvalJob) -> None:
    """Raises UserError with the key, the value and what would be right."""
    for name in c.metrics:
        require(name in METRICS, f"metrics: {name}: no such metric; one of {', '.join(METRICS)}")
    check_files_to_score(c)
    if c.sheet is None:
        check_given(c)
    else:  # it lists what was not given
        require(c.sheet in SHEETS, f"sheet={c.sheet}: one of {', '.join(SHEETS)}")
        others = [name for name in c.metrics if name not in SHEETS[c.sheet]]
        require(
            not others,
            f"metrics: {', '.join(others)} have no place on evals={c.sheet}; it shows {', '.join(SHEETS[c.sheet])}",
        )
    check_judges(c)
    judges = [name for name in ("vqascore", "genai_bench_vqascore") if name in c.metrics]
    require(
        c.vqascore.pattern is None or not judges,
        f"vqascore.pattern: {', '.join(judges)} asks about whole texts only; leave one of them out",
    )


def check_given(c: EvalJob) -> None:
    """What the chosen metrics cannot be measured without."""
    require(
        c.genai_bench is not None or "genai_bench" not in c.metrics,
        "metrics: genai_bench needs genai_bench=FOLDER with GenAI-Bench's files",
    )
    require(
        c.genai_bench is not None or "genai_bench_vqascore" not in c.metrics,
        "metrics: genai_bench_vqascore needs genai_bench=FOLDER",
    )
    require(
        bool(c.language.tasks) or "language" not in c.metrics,
        "metrics: language needs language.tasks=[...], such as [hellaswag,arc_easy]",
    )
    require(
        c.features.kind == "vq" or c.features.path is not None,
        f"features.kind={c.features.kind} needs features.path=PATH",
    )


def check_files_to_score(c: EvalJob) -> None:
    """What is in files already is scored without a model, everything else with one."""
    keys = {
        name: f"benchmarks.{name}.predictions"
        for name in BENCHMARKS
        if getattr(c.benchmarks, name).predictions is not None
    }
    keys |= {"wise": "wise.scores"} if c.wise.scores else {}
    given = [keys[name] for name in c.metrics if name in keys]
    if c.watch is not None:
        for key in ("checkpoint", "output", "sheet"):
            require(
                get(c, key) is None,
                f"watch={c.watch} goes without {key}={get(c, key)}: every checkpoint is evaluated into "
                "the run's evals/",
            )
    if c.checkpoint is not None or c.watch is not None:
        model = f"checkpoint={c.checkpoint}" if c.checkpoint is not None else f"watch={c.watch}"
        require(not given, f"{', '.join(given)}: files are scored without a model; leave out these, or {model}")
        return
    require(bool(given), "checkpoint has no value; give checkpoint=...")
    others = [name for name in c.metrics if name not in keys]
    require(
        not others,
        f"checkpoint has no value, and metrics={','.join(others)} need one; leave them out to score {', '.join(given)}",
    )
    require(c.output is not None, f"output has no value, and {', '.join(given)} belong to no run; give output=DIR")


def check_judges(c: EvalJob) -> None:
    """Models and folders that single metrics need, and those that were given."""
    for metrics, key, what in (
        (
            ("vqascore", "genai_bench_vqascore"),
            "vqascore.model",
            "a visual question answering model in Hugging Face format",
        ),
        (("clipscore",), "clipscore.model", "a CLIP model in Hugging Face format"),
        (("reference_quality",), "reference.folder", "real images, as MJHQ-30K's"),
        (("wise",), "wise.prompts", "WISE's three JSON files"),
    ):
        path, asked = get(c, key), [name for name in metrics if name in c.metrics]
        require(
            path is not None or not asked or c.sheet is not None,
            f"metrics: {', '.join(asked)} needs {key}=FOLDER with {what}",
        )
        require(path is None or Path(path).is_dir(), f"{key}={path}: no such folder; give that of {what}")
        model = key.endswith(".model") and path is not None
        require(
            not model or (Path(str(path)) / "config.json").is_file(),
            f"{key}={path}: no config.json there; give the folder of {what}",
        )


def get(config: Any, key: str) -> Any:
    """The value of a dotted key of nested dataclasses."""
    for part in key.split("."):
        config = getattr(config, part)
    return config
