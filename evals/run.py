"""`liquid eval`: the chosen metrics of a model, into evals/ of the run.

    evals/step-NNNNNNNN-NAME.json  every metric's numbers with their intervals and provenance (evals/suite.py lists the
                                   names)
    evals/vqa.json                 accuracy by answer type, blind baseline, shuffled images, twelve examples
                                   (examples/*.png)
    evals/t2i.json                 right colours and shapes, distinct images, Frechet distance; drawn.png shows the
                                   images
    evals/predictions/             answers to published benchmarks, in the formats that their servers and programs take
    evals/paper.md, paper.html     with evals=paper: the numbers next to those of the paper (evals/paper/sheet.py)

The same call again with the results in place does nothing and imports no torch. Results of other steps are kept.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from evals.benchmarks.question_files import read_benchmark
from evals.benchmarks.score_files import score_files
from evals.paper.sheet import measurable, write_sheet
from evals.settings import BENCHMARKS, DRAWING, METRIC_VERSIONS, METRICS, READING, SAMPLERS_VERSION, EvalJob
from liquid_train.checkpoint.folder import model_folder, step_of
from liquid_train.config.compose import read_config
from liquid_train.config.schema import TrainJob
from liquid_train.data.shards import ShardSet
from liquid_train.errors import UserError
from liquid_train.files import check_folder, write_synced, writing
from liquid_train.generate.job import progress_bar
from liquid_train.generate.manifest import (
    file_identity,
    is_current,
    model_identity,
    publish,
    staging_directory,
    text_digest,
)
from liquid_train.measurement.measurement import Measurement, ModelHandle, Progress, file_name, write_measurement

if TYPE_CHECKING:
    from evals.suite import Inputs

NONE = "–"

SETTINGS = (
    "seed",
    "images_per_prompt",
    "guidance",
    "temperature",
    "top_k",
    "max_images",
    "metrics",
    "caption_images",
    "tokenizer_images",
    "sheet",
)


def run(config: EvalJob) -> None:
    """Evaluate a checkpoint, or without one score what is in files. Raises UserError for a user's mistake, before the
    model is loaded where that can be told."""
    if config.watch is not None:
        from evals.watch import watch

        watch(config)
        return
    if config.checkpoint is None:
        score(config)
        return
    folder = model_folder(config.checkpoint)
    output = output_folder(config, folder)
    config, unmeasured = measurable(config) if config.sheet is not None else (config, {})
    if config.max_images is not None and config.max_images < 1:
        raise UserError(f"max_images={config.max_images}: must be 1 or more, or null for all")
    for path in shard_paths(config):
        ShardSet(path).check_files()
    inputs = inputs_of(config, folder)
    step = step_of(folder.parent) if in_run(folder) else None
    names = chosen_names(config)
    files = [output / file_name(name, step) for name in names]
    if is_current(output, inputs) and all(path.is_file() for path in files):
        print(f"{output}: evaluated with these settings already; nothing to do")
        print_tables(output)
        print_values(files)
        return
    what = output_setting(config, output)
    check_folder(output, what, "give another folder with output=DIR")
    with staging_directory(output, what) as partial:
        found, failed = evaluate(config, folder, step, partial) if names else ({}, {})
        write_found(output, step, found, what)
        if config.sheet is not None:
            unmeasured |= failed
            write_sheet(
                partial, f"{config.checkpoint}, {'the model' if step is None else f'step {step:,}'}", found, unmeasured
            )
            print("\n".join(f"{name}: not measured: {why}" for name, why in unmeasured.items()))
        keep_unmeasured(output, partial, [*names, config.sheet])
        publish(partial, output, inputs)
    print_tables(output)
    print_values([path for path in files if path.is_file()])
    print(
        f"written to {output}"
        + (f"; next to the paper's numbers: {output / 'paper.html'}" if config.sheet is not None else "")
    )


def chosen_names(config: EvalJob) -> list[str]:
    """What is to be measured. Raises UserError for nothing, unless a sheet is to say so."""
    names = [name for name in METRICS if name in config.metrics and (config.images_per_prompt or name not in DRAWING)]
    if not names and config.sheet is None:
        raise UserError(
            f"images_per_prompt=0 leaves none of metrics={config.metrics} to measure; give 1 or more, or other metrics"
        )
    return names


def score(config: EvalJob) -> None:
    """Answers and a judge's marks from files, into output/model-NAME.json."""
    assert config.output is not None  # evals.checks
    output = Path(config.output)
    check_folder(output, f"output={output}")
    found = score_files(config)
    write_found(output, None, found, f"output={output}")
    print_values([output / file_name(name, None) for name in found])
    print(f"written to {output}")


def write_found(output: Path, step: int | None, found: dict[str, Measurement], what: str) -> None:
    """Write every measurement with its predictions. Where the disk does not take them, their numbers are printed, and
    UserError is raised."""
    try:
        with writing(output, what, "make room, or give another folder with output=DIR"):
            for name, measured in found.items():
                write_predictions(output, step, measured)
                write_measurement(output, name, step, measured)
                for warning in measured.warnings:
                    print(f"{name}: {warning}")
    except UserError:
        print_numbers([{key: asdict(v) for key, v in m.values.items()} for m in found.values()])
        raise


def in_run(folder: Path) -> bool:
    """Whether a model/ folder belongs to a checkpoint of a run."""
    return folder.name == "model" and folder.parent.parent.name == "checkpoints"


def trained_with(config: EvalJob) -> TrainJob:
    """The config whose data.heldout is measured. Raises UserError where no run has one."""
    if config.heldout.run is not None:
        found, key = read_config(Path(config.heldout.run)), f"heldout.run={config.heldout.run}"
    else:
        key = f"checkpoint={config.checkpoint}"
        folder = model_folder(str(config.checkpoint))
        if not in_run(folder):
            raise UserError(f"metrics: heldout needs a run's config, and {key} belongs to no run; give heldout.run=RUN")
        found = read_config(folder.parents[2])
    if not found.data.heldout:
        raise UserError(
            f"metrics: heldout: {key}: its data.heldout names no sources; give heldout.run=RUN with another one"
        )
    return found


def heldout_identity(config: EvalJob) -> list[Any] | None:
    if "heldout" not in config.metrics:
        return None
    c = trained_with(config)
    return [
        asdict(config.heldout),
        asdict(c.data),
        c.seed,
        c.train.micro_batch,
        {name: ShardSet(s.path).digest for name, s in c.data.heldout.items()},
    ]


def output_folder(config: EvalJob, folder: Path) -> Path:
    if config.output is not None:
        return Path(config.output)
    if not in_run(folder):
        raise UserError(f"output has no value, and checkpoint={config.checkpoint} belongs to no run; give output=DIR")
    return folder.parents[2] / "evals"


def output_setting(config: EvalJob, output: Path) -> str:
    """The setting that results go to `output`, with its value."""
    return f"output={output}" if config.output is not None else f"checkpoint={config.checkpoint}, whose evals/"


def inputs_of(config: EvalJob, folder: Path) -> dict[str, Any]:
    """Everything that decides the results: model, data, settings, and the version of each metric."""
    return {
        "model": model_identity(folder),
        "data": [ShardSet(path).digest for path in shard_paths(config)],
        "vq": [
            file_identity(Path(path)) if Path(path).is_file() else path
            for path in (config.vq.config, config.vq.checkpoint)
        ],
        "versions": [SAMPLERS_VERSION, {name: METRIC_VERSIONS[name] for name in chosen_names(config)}],
        "features": [
            asdict(config.features),
            file_identity(Path(config.features.path)) if config.features.path is not None else None,
        ],
        "heldout": heldout_identity(config),
        "vqascore": asdict(config.vqascore),
        "judges": [
            asdict(config.clipscore),
            [file_identity(p) for path in judge_paths(config) for p in sorted(Path(path).glob("*"))],
        ],
        "reference": [asdict(config.reference), text_digest(json.dumps(image_identities(config)))],
        "wise": [
            asdict(config.wise),
            [file_identity(p) for p in sorted(Path(config.wise.prompts).glob("*.json"))]
            if config.wise.prompts
            else None,
        ],
        "genai_bench": [file_identity(p) for p in sorted(Path(config.genai_bench).glob("*"))]
        if config.genai_bench is not None
        else None,
        "benchmarks": [
            asdict(config.benchmarks),
            text_digest(json.dumps([file_identity(p) for p in benchmark_paths(config)])),
        ],
        "language": [asdict(config.language), [file_identity(p) for p in task_files(config)]],
        **{key: getattr(config, key) for key in SETTINGS},
    }


def shard_paths(config: EvalJob) -> list[str]:
    """The shard sets that the chosen metrics read."""
    return [
        path for path in (config.shards, config.train_shards) if path is not None and set(config.metrics) & set(READING)
    ]


def task_files(config: EvalJob) -> list[Path]:
    where = config.language.include_path
    return sorted(Path(where).rglob("*")) if where is not None and "language" in config.metrics else []


def benchmark_paths(config: EvalJob) -> list[Path]:
    """The questions and images of the chosen benchmarks, those of a folder one by one."""
    paths = [
        Path(p)
        for name in BENCHMARKS
        if name in config.metrics
        for p in asdict(getattr(config.benchmarks, name)).values()
        if p is not None
    ]
    return [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]


def judge_paths(config: EvalJob) -> list[str]:
    return [path for path in (config.vqascore.model, config.clipscore.model) if path is not None]


def image_identities(config: EvalJob) -> list[Any]:
    """The reference images, where they are measured."""
    where = config.reference.folder
    return (
        [file_identity(p) for p in sorted(Path(where).rglob("*"))]
        if where is not None and "reference_quality" in config.metrics
        else []
    )


def write_predictions(output: Path, step: int | None, measured: Measurement) -> None:
    """The files and images that a benchmark's server or program takes, and the names of what was left out."""
    for name, text in measured.detail.get("files", {}).items():
        write_synced(prediction_path(output, step, name), text)
    for name, pixels in measured.detail.get("image_files", {}).items():
        from liquid_train.generate.images import save_png

        save_png(prediction_path(output, step, name), pixels)


def prediction_path(output: Path, step: int | None, name: str) -> Path:
    """predictions/STEP-NAME, whose folder is there."""
    path = output / "predictions" / (file_name("", step).removesuffix(".json") + name)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def evaluate(
    config: EvalJob, model: Path, step: int | None, folder: Path
) -> tuple[dict[str, Measurement], dict[str, str]]:
    """(what was measured, why the others were not); what the report reads of it is written into `folder`.

    Raises UserError for a metric that the data does not allow, unless it is one of a sheet.
    """
    from evals.suite import Inputs, Suite
    from liquid_train.generate.session import open_model

    benchmarks = {name: read_benchmark(name, config.benchmarks) for name in BENCHMARKS if name in config.metrics}
    session = open_model(model, config.device, vq=config.vq)
    inputs = Inputs(config, session, benchmarks)
    found: dict[str, Measurement] = {}
    failed: dict[str, str] = {}
    with reports() as report:
        suite = Suite(ModelHandle.of(session, inputs.image_tokenizer, report), inputs)
        for name, measure in suite.measures().items():
            try:
                found[name] = measure()
            except UserError as error:
                if config.sheet is None:
                    raise
                failed[name] = str(error)
    if "vqa" in found:
        write_examples(inputs, config.seed, folder)
        write_json(folder / "vqa.json", {"step": step, **found["vqa"].detail})
    if "t2i" in found:
        from liquid_train.generate.images import contact_sheet, save_png

        save_png(folder / "drawn.png", contact_sheet(list(suite.generated.pixels), columns=config.images_per_prompt))
        write_json(
            folder / "t2i.json", {"step": step, **found["t2i"].detail, **frechet_summary(found.get("image_quality"))}
        )
    return found, failed


def keep_unmeasured(output: Path, partial: Path, names: list[str | None]) -> None:
    """What the report reads of metrics that were not chosen this time, and the sheet, stay as they are; each says of
    which step it is."""
    for name, patterns in (
        ("vqa", ("vqa.json", "examples/*.png")),
        ("t2i", ("t2i.json", "drawn.png")),
        ("paper", ("paper.md", "paper.html")),
    ):
        for path in (p for pattern in patterns for p in output.glob(pattern) if name not in names):
            copy = partial / path.relative_to(output)
            copy.parent.mkdir(exist_ok=True)
            shutil.copy2(path, copy)


def write_examples(inputs: Inputs, seed: int, folder: Path) -> None:
    """The images of the questions that vqa.json shows."""
    from evals.metrics.vqa import choose_examples, example_name
    from liquid_train.generate.images import decode, save_png

    data = inputs.questions
    shown = decode(
        inputs.image_tokenizer,
        np.stack([data.codes[data.questions[n].image] for n in choose_examples(data.questions, seed)]),
    )
    (folder / "examples").mkdir()
    for i, pixels in enumerate(shown):
        save_png(folder / example_name(i), pixels)


def frechet_summary(quality: Measurement | None) -> dict[str, Any]:
    """What t2i.json says of image_quality: nothing unless both were measured."""
    if quality is None:
        return {}
    distances = {
        key: value.value
        for key, value in quality.values.items()
        if key in ("frechet_distance", "frechet_of_reconstructions", "fid")
    }
    return {
        **distances,
        "frechet_features": quality.provenance.features,
        "frechet_reference": quality.detail["reference"],
    }


@contextmanager
def reports() -> Iterator[Progress]:
    """A progress bar with one line for each kind of work."""
    with progress_bar() as bar:
        tasks: dict[str, Any] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done)

        yield report


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")


def print_tables(folder: Path, console: Console | None = None) -> None:
    """What vqa.json and t2i.json say, as far as they are there, and every number of the newest step with its
    interval."""
    console = console or Console()
    vqa, t2i = (read_json(folder / f"{name}.json") for name in ("vqa", "t2i"))
    if vqa:
        console.print(vqa_table(vqa))
    if t2i:
        table = Table(
            "",
            "drawn",
            "judge on real images",
            title=f"{t2i['count']} images generated from {len(t2i['prompts'])} captions",
            title_justify="left",
        )
        table.add_row("right colour", percent(t2i["right_color"]), percent(t2i["judge_color_accuracy"]))
        table.add_row("right shape", percent(t2i["right_shape"]), percent(t2i["judge_shape_accuracy"]))
        table.add_row(
            f"different images of {t2i['images_per_prompt']} (least, mean)",
            f"{t2i['distinct_min']}, {t2i['distinct_mean']:.1f}",
            "",
        )
        console.print(table)


def print_values(files: list[Path], console: Console | None = None) -> None:
    """Every number of the given measurement files with its interval."""
    print_numbers([read_json(path)["values"] for path in files], console)


def print_numbers(found: list[dict[str, dict[str, Any]]], console: Console | None = None) -> None:
    """By metric name {"value", "low", "high", "n"}, as a measurement's file has them."""
    table = Table("metric", "value", "95% interval", "n", title="All metrics", title_justify="left")
    for values in found:
        for key, value in values.items():
            interval = NONE if value["low"] is None else f"{value['low']:.4g} to {value['high']:.4g}"
            table.add_row(key, NONE if value["value"] is None else f"{value['value']:.4g}", interval, f"{value['n']:,}")
    (console or Console()).print(table)


def vqa_table(vqa: dict[str, Any]) -> Table:
    table = Table(
        "answers",
        "questions",
        "right",
        "blind",
        "shuffled images",
        title="Questions about unseen images",
        title_justify="left",
    )
    rows = [("all", vqa, vqa.get("blind_accuracy"), vqa.get("shuffled_accuracy"))]
    for kind, own in vqa["by_type"].items():
        rows.append(
            (
                kind,
                own,
                *(vqa[key][kind]["accuracy"] if key in vqa else None for key in ("blind_by_type", "shuffled_by_type")),
            )
        )
    for kind, own, blind, shuffled in rows:
        table.add_row(kind, f"{own['count']:,}", *(percent(value) for value in (own["accuracy"], blind, shuffled)))
    return table


def read_json(path: Path) -> dict[str, Any]:
    """{} where there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def percent(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:.1f}%"
