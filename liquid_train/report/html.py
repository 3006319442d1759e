"""A run as one HTML page: images, answers, curves, speed, config; nothing outside the file is needed to read it.

    run folder -> run_reader.read_run -> plots (curves as SVG), images (data URIs)
               -> template.html -> RUN/report.html

The page carries a digest of everything it was made from, so that `report_is_current` can tell without drawing anything.
The functions that `liquid run` calls are here or re-exported: report, summary, print_summary, list_runs, status.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from liquid_train.errors import UserError
from liquid_train.files import check_file, write_synced
from liquid_train.report.run_reader import RunRecord, config_value, last, number, read_run, summarize, summary
from liquid_train.report.tables import (
    duration,
    list_runs,
    percent,
    plain,
    print_summary,
    quantity,
    status,
    type_in_prose,
)

__all__ = [
    "inputs_digest",
    "list_runs",
    "print_summary",
    "report",
    "report_is_current",
    "status",
    "summary",
    "write_report",
]

BACKBONE_SIZES = (("num_hidden_layers", "layers"), ("hidden_size", "wide"), ("num_attention_heads", "heads"))
META = "liquid-inputs"
VERSION = 2  # raised by whoever changes what the page shows: pages of an older version are then written again


def inputs_digest(run_dir: Path) -> str:
    """sha256 over the files that the report shows and the version of the page that shows them."""
    digest = hashlib.sha256(f"{VERSION}\0".encode())
    for path in input_files(run_dir):
        digest.update(f"{path.relative_to(run_dir).as_posix()}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def input_files(run_dir: Path) -> Iterator[Path]:
    """Every file of a run that the report shows, in a fixed order."""
    for pattern in (
        "config.yaml",
        "config_history.jsonl",
        "environment.json",
        "metrics.jsonl",
        "evals/metrics.jsonl",
        "evals/*.json",
        "evals/drawn.png",
        "evals/examples/*",
        "samples/step-*",
        "samples/final/*",
    ):
        yield from sorted(path for path in run_dir.glob(pattern) if path.is_file())


def report_is_current(run_dir: str | Path) -> bool:
    """Whether report.html was made from the files as they are now, by this version of the program."""
    path = Path(run_dir) / "report.html"
    if not path.is_file():
        return False
    with path.open(encoding="utf-8", errors="replace") as file:
        found = re.search(rf'<meta name="{META}" content="([0-9a-f]{{64}})">', file.read(2000))
    return found is not None and found.group(1) == inputs_digest(Path(run_dir))


def report(run_dir: Path, output: Path | None = None) -> None:
    """Write the page, unless RUN/report.html is up to date and no other file is asked for, and print the summary.

    Raises UserError, after the summary, where the page cannot be written.
    """
    failure = None
    if output is not None or not report_is_current(run_dir):
        try:
            write_report(run_dir, output)
        except UnwritablePage as error:
            failure = error
    print_summary(run_dir)
    if failure is not None:
        raise failure


class UnwritablePage(UserError):
    """The report could not be written where it belongs."""


def write_report(run_dir: str | Path, output: Path | None = None) -> Path:
    """Write `output`, by default RUN/report.html (written under another name, then renamed), and return its path.
    Raises UserError for a folder that is no run, UnwritablePage where the file cannot be written."""
    import jinja2

    run = read_run(run_dir)
    path = output or run.folder / "report.html"
    try:
        check_file(path, f"--output {output}" if output else str(path), "give another file with --output FILE.html")
    except UserError as error:
        raise UnwritablePage(str(error)) from error
    template = (Path(__file__).parent / "template.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters.update(
        percent=percent, duration=duration, quantity=quantity, plain=plain, width=bar_width, type_in_prose=type_in_prose
    )
    page = environment.from_string(template).render(page_context(run))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_synced(path, page)
    except OSError as error:
        raise UnwritablePage(
            f"{path}: cannot be written to: {error.strerror or error}; give another file with --output FILE.html"
        ) from error
    return path


def page_context(run: RunRecord) -> dict[str, Any]:
    """Everything that the template names."""
    from markupsafe import Markup

    from liquid_train.report import images as report_images
    from liquid_train.report import plots as report_plots

    # before reading images: a file that changes meanwhile makes the page stale, not wrong
    digest = inputs_digest(run.folder)
    head = summarize(run)
    grids, grids_total = report_images.periodic_grids(run.folder)
    groups = report_plots.curve_groups(run)
    return {
        "digest": digest,
        "meta": META,
        "run": run,
        "head": head,
        "progress": progress_text(run),
        "tiles": tiles(head),
        "facts": facts(run),
        "tasks": task_rows(run, head),
        "final": report_images.final_images(run.folder),
        "t2i": run.t2i,
        "judged": report_images.judged_sheet(run.folder),
        "vqa_rows": head["vqa"].get("rows", []),
        "answered": report_images.answered(run.folder, run.vqa.get("examples") or []),
        "groups": [(group, [(title, Markup(svg)) for title, svg in group.figures]) for group in groups],
        "grids": grids,
        "grids_total": grids_total,
        "changes": changed_settings(run),
        "environment": flatten(run.environment),
    }


def changed_settings(run: RunRecord) -> list[tuple[str, str, str, str]]:
    """Step, key, value before and value after of every setting that was changed on the way."""
    return [
        (f"{line.get('step')}", key, *(json.dumps(value, ensure_ascii=False) for value in values))
        for line in run.changes
        if isinstance(line.get("changes"), dict)
        for key, values in line["changes"].items()
        if isinstance(values, list) and len(values) == 2
    ]


def progress_text(run: RunRecord) -> str:
    """'finished: 2,000 of 2,000 steps' and the like."""
    steps, tokens = config_value(run.config, "train.steps"), config_value(run.config, "train.tokens")
    if run.state == "not started":
        return "no training step logged yet"
    planned = (
        f" of {steps:,} steps"
        if steps
        else f" steps, {quantity(run.tokens)} of {quantity(tokens)} tokens"
        if tokens
        else " steps"
    )
    return (
        f"{'finished' if run.state == 'finished' else 'not finished (stopped, or still running)'}: "
        f"{run.step:,}{planned}"
    )


def tiles(head: dict[str, Any]) -> list[dict[str, str]]:
    """The headline numbers: {label, value, note}. Only what was measured."""
    out = []
    for row in head["vqa"].get("rows", []):
        label = (
            "Questions answered right"
            if row["name"] == "all"
            else f"{type_in_prose(row['name']).capitalize()} questions"
        )
        out.append(
            {
                "label": label,
                "value": percent(row["accuracy"]),
                "note": f"blind {percent(row['blind'])}" if row["blind"] is not None else "",
            }
        )
    t2i = head["t2i"]
    for key, label, text, note in (
        ("right_color", "Images in the right colour", percent, f"{plain(t2i.get('count'))} images"),
        ("right_shape", "Images of the right shape", percent, f"{plain(t2i.get('count'))} images"),
        ("distinct_of_10", "Distinct images of 10", plain, "the least varied prompt"),
        ("frechet_distance", "Fréchet distance", plain, "not Inception features"),
    ):
        if number(t2i.get(key)) is not None:
            out.append({"label": label, "value": text(t2i[key]), "note": note})
    if head["step"]:
        out.append(
            {"label": "Training time", "value": duration(head["train_seconds"]), "note": f"{head['step']:,} steps"}
        )
        out.append(
            {
                "label": "Tokens per second",
                "value": quantity(head["tokens_per_second"]),
                "note": f"{quantity(head['tokens'])} tokens",
            }
        )
    return out


def facts(run: RunRecord) -> list[tuple[str, str]]:
    """What was trained, from config.yaml: the lines that a reader asks for first."""
    c = run.config
    shape = config_value(c, "backbone.architecture") or {}
    sizes = [f"{shape[key]} {word}" for key, word in BACKBONE_SIZES if key in shape]
    sources = config_value(c, "data.sources") or {}
    mixture = [
        f"{name}: {s.get('task')}, weight {plain(s.get('weight', 1))}"
        for name, s in sources.items()
        if isinstance(s, dict)
    ]
    rate, kind = config_value(c, "optimizer.lr"), config_value(c, "optimizer.kind") or "adamw"
    rows = [
        (
            "Backbone",
            config_value(c, "backbone.path") or ", ".join([str(shape.get("model_type") or ""), *sizes]).strip(", "),
        ),
        ("Initialization", config_value(c, "backbone.init")),
        ("Mixture", "; ".join(mixture)),
        (
            "Epochs",
            ", ".join(
                f"{name} {plain(value)}" for name in sources if (value := last(run.train, f"epoch/{name}")) is not None
            ),
        ),
        ("Batch", _batch(c)),
        (
            "Optimizer",
            f"{kind}, peak learning rate {rate}, {config_value(c, 'schedule.kind')} schedule" if rate else None,
        ),
        ("Precision", config_value(c, "parallel.precision")),
        ("Seed", config_value(c, "seed")),
        ("Checkpoints", ", ".join(summarize(run)["checkpoints"])),
    ]
    return [(name, str(value)) for name, value in rows if value not in (None, "")]


def _batch(config: dict[str, Any]) -> str | None:
    batch, length = config_value(config, "data.global_batch"), config_value(config, "data.seq_len")
    return f"{batch} packed sequences of {length:,} tokens a step" if batch and isinstance(length, int) else None


def task_rows(run: RunRecord, head: dict[str, Any]) -> list[dict[str, Any]]:
    """Per task: the last training loss and accuracy (mean of the last 50 logged steps) next to the held-out ones."""
    recent = run.train[-50:]
    rows = []
    for task in run.tasks:
        row: dict[str, Any] = {
            "task": task,
            "heldout_loss": head["heldout"]["loss"].get(task),
            "heldout_accuracy": head["heldout"]["accuracy"].get(task),
        }
        for kind in ("loss", "accuracy"):
            values = [value for line in recent if (value := number(line.get(f"{kind}/{task}"))) is not None]
            row[kind] = sum(values) / len(values) if values else None
        rows.append(row)
    return rows


def flatten(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """A nested dictionary as (dotted key, text) rows; lists on one line."""
    if isinstance(value, dict):
        return [
            row for key, inner in value.items() for row in flatten(inner, f"{prefix}.{key}" if prefix else str(key))
        ]
    return [(prefix, ", ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value))]


def bar_width(value: Any) -> str:
    """A share as the CSS width of a bar."""
    found = number(value)
    return f"{100 * min(max(found, 0.0), 1.0):.1f}%" if found is not None else "0%"
