"""`liquid eval`: the chosen metrics of a model, into evals/ of the run.

    evals/step-NNNNNNNN-NAME.json  every metric's numbers with their intervals and provenance (evals/metrics/ has one
                                   file a metric)
    evals/vqa.json                 accuracy by answer type, blind baseline, shuffled images, twelve examples
                                   (examples/*.png)
    evals/t2i.json                 of easy-VQA: right colours and shapes, distinct images, Frechet distance; drawn.png
                                   shows the images
    evals/predictions/             answers to published benchmarks, in the formats that their servers and programs take
    evals/paper.md, paper.html     with evals=paper: the numbers next to those of the paper (evals/paper/sheet.py)

The same call again with the results in place does nothing and imports no torch. Results of other steps are kept.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evals.chosen import AUTO, Chosen, choose, find_all, metric_names
from evals.errors import NotMeasurable
from evals.identity import features_identity
from evals.inputs import Inputs, JobInputs, prompts_identity
from evals.json_files import write_json
from evals.metric import Metric
from evals.paper.sheet import measurable, write_sheet
from evals.sets import EvalSets, eval_sets, in_run
from evals.settings import SAMPLERS_VERSION, EvalJob
from evals.tables import content_of, print_numbers, print_tables, print_values
from liquid_train.checkpoint.folder import model_folder, step_of
from liquid_train.data.shards import ShardSet
from liquid_train.errors import UserError
from liquid_train.files import check_folder, write_synced, writing
from liquid_train.generate.job import progress_bar
from liquid_train.generate.manifest import is_current, model_identity, publish, staging_directory, vq_identity
from liquid_train.measurement.measurement import Measurement, ModelHandle, Progress, file_name, write_measurement

LEFT_OUT = "left_out.json"  # what only the measuring showed to be impossible, so that it is not tried again

SAMPLING = ("seed", "images_per_prompt", "guidance", "temperature", "top_k")


def run(config: EvalJob) -> None:
    """Evaluate a checkpoint, or without one score what is in files. Raises UserError for a user's mistake, before the
    model is loaded where that can be told."""
    if config.watch is not None:
        from evals.watch import watch

        watch(config)
    elif config.checkpoint is None:
        score(config)
    else:
        evaluate_checkpoint(config, config.checkpoint)


def evaluate_checkpoint(config: EvalJob, checkpoint: str) -> None:
    """Measure a checkpoint, write evals/, show the numbers."""
    find_all([name for name in config.metrics if name != AUTO], "metrics", config)  # a wrong name is told first
    folder = model_folder(checkpoint)
    output = output_folder(config, folder)
    config, unmeasured = measurable(config) if config.sheet is not None else (config, {})
    if config.max_images is not None and config.max_images < 1:
        raise UserError(f"max_images={config.max_images}: must be 1 or more, or null for all")
    sets = eval_sets(config)
    chosen = choose(config, sets)
    for path in paths_read(chosen, sets):
        ShardSet(path).check_files()
    inputs = inputs_of(config, folder, chosen, sets)
    step = step_of(folder.parent) if in_run(folder) else None
    if is_current(output, inputs):
        left_out = chosen.left_out | content_of(output / LEFT_OUT)
        files = [output / file_name(name, step) for name in chosen.names if name not in left_out]
        if all(path.is_file() for path in files):
            print(f"{output}: evaluated with these settings already; nothing to do")
            show(output, files, left_out)
            return
    what = output_setting(config, output)
    check_folder(output, what, "give another folder with output=DIR")
    with staging_directory(output, what) as partial:
        found, failed = measure_all(config, chosen, sets, folder, step, partial) if chosen.metrics else ({}, {})
        write_found(output, step, found, chosen.metrics, what)
        if config.sheet is not None:
            title = f"{checkpoint}, {'the model' if step is None else f'step {step:,}'}"
            write_sheet(partial, title, found, unmeasured | failed)
        elif failed:
            write_json(partial / LEFT_OUT, failed)
        keep_unmeasured(output, partial, chosen, config.sheet)
        publish(partial, output, inputs)
    show(output, [output / file_name(name, step) for name in found], unmeasured | chosen.left_out | failed)
    sheet = f"; next to the paper's numbers: {output / 'paper.html'}" if config.sheet is not None else ""
    print(f"written to {output}{sheet}")


def show(output: Path, files: list[Path], left_out: dict[str, str]) -> None:
    """The numbers, and why others are not there."""
    print_tables(output)
    print_values(files)
    for name, why in left_out.items():
        print(f"{name}: not measured: {why}")


def write_found(
    output: Path, step: int | None, found: dict[str, Measurement], metrics: list[Metric], what: str
) -> None:
    """Write every measurement with its predictions. Where the disk does not take them, their numbers are printed, and
    UserError is raised."""
    families = {metric.name: metric.families for metric in metrics}
    try:
        with writing(output, what, "make room, or give another folder with output=DIR"):
            for name, measured in found.items():
                write_predictions(output, step, measured)
                write_measurement(output, name, step, measured, families[name])
                for warning in measured.warnings:
                    print(f"{name}: {warning}")
    except UserError:
        print_numbers([{key: asdict(v) for key, v in m.values.items()} for m in found.values()])
        raise


def score(config: EvalJob) -> None:
    """Answers and a judge's marks from files, into output/model-NAME.json."""
    metrics = find_all([name for name in config.metrics if name != AUTO], "metrics", config)
    assert config.output is not None  # evals/checks.py
    output, what = Path(config.output), f"output={config.output}"
    check_folder(output, what)
    found = {metric.name: metric.score() for metric in metrics}
    write_found(output, None, found, metrics, what)
    print_values([output / file_name(name, None) for name in found])
    print(f"written to {output}")


def output_folder(config: EvalJob, folder: Path) -> Path:
    if config.output is not None:
        return Path(config.output)
    if not in_run(folder):
        raise UserError(f"output has no value, and checkpoint={config.checkpoint} belongs to no run; give output=DIR")
    return folder.parents[2] / "evals"


def output_setting(config: EvalJob, output: Path) -> str:
    """The setting that results go to `output`, with its value."""
    return f"output={output}" if config.output is not None else f"checkpoint={config.checkpoint}, whose evals/"


def inputs_of(config: EvalJob, folder: Path, chosen: Chosen, sets: EvalSets) -> dict[str, Any]:
    """Everything that decides the results: model, data, samplers, and of each metric its version, settings and
    files."""
    draws = any(metric.draws for metric in chosen.metrics)
    return {
        "model": model_identity(folder),
        "data": [ShardSet(path).digest for path in paths_read(chosen, sets)],
        **vq_identity(config.vq),
        "samplers": [SAMPLERS_VERSION, {key: getattr(config, key) for key in SAMPLING}],
        "prompts": prompts_identity(config, sets) if draws else None,
        "features": features_identity(config.features),
        "metrics": {metric.name: [metric.version, metric.identity()] for metric in chosen.metrics},
        "sheet": config.sheet,
    }


def paths_read(chosen: Chosen, sets: EvalSets) -> list[str]:
    """The shard sets that the chosen metrics read."""
    kinds = [kind for metric in chosen.metrics for kind in metric.reads]
    return list(dict.fromkeys(path for kind in kinds if (path := sets.path(kind)) is not None))


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


def measure_all(
    config: EvalJob, chosen: Chosen, sets: EvalSets, model: Path, step: int | None, folder: Path
) -> tuple[dict[str, Measurement], dict[str, str]]:
    """(what was measured, why the others were not); what the report reads of it is written into `folder`.

    Raises UserError for a named metric that the data do not allow, unless it is one of a sheet, and where nothing is
    left.
    """
    from liquid_train.generate.session import open_model, open_vq

    failed: dict[str, str] = {}
    metrics = list(chosen.metrics)

    def attempt(step: Callable[[Metric], Any]) -> dict[str, Any]:
        """What the step gave, by name. What it shows to be impossible is left out of the steps that follow."""
        given: dict[str, Any] = {}
        for metric in list(metrics):
            try:
                given[metric.name] = step(metric)
            except UserError as error:
                lenient = isinstance(error, NotMeasurable) and metric.name in chosen.automatic
                if config.sheet is None and not lenient:
                    raise
                failed[metric.name] = str(error)
                metrics.remove(metric)
        return given

    attempt(lambda metric: metric.read())
    session = open_model(model, config.device, vq=config.vq)
    sets = sets.of_vq(session.card.vq_fingerprint, session.card.codebook_size)
    found: dict[str, Measurement] = {}
    with reports() as report:
        handle = ModelHandle.of(session, open_vq(session, config.vq), report)
        inputs: Inputs = JobInputs(config, session, handle, sets)
        attempt(lambda metric: metric.prepare(inputs))
        found = attempt(lambda metric: metric.measure(handle, inputs))
    if not found and config.sheet is None:
        raise UserError("nothing can be measured: " + "; ".join(f"{n}: {w}" for n, w in failed.items()))
    attempt(lambda metric: metric.write(folder, step, found, inputs))
    return found, failed


def keep_unmeasured(output: Path, partial: Path, chosen: Chosen, sheet: str | None) -> None:
    """What the report reads of metrics that were not chosen this time, and the sheet, stay as they are; each says of
    which step it is."""
    measured = {pattern for metric in chosen.metrics for pattern in metric.files}
    every = {pattern for metric in find_all(metric_names(), "metrics") for pattern in metric.files}
    pages = set() if sheet is not None else {"paper.md", "paper.html"}
    for path in (p for pattern in sorted(every - measured | pages) for p in output.glob(pattern)):
        copy = partial / path.relative_to(output)
        copy.parent.mkdir(exist_ok=True)
        shutil.copy2(path, copy)


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
