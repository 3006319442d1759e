"""Runs in the terminal: the summary after a quickstart, `liquid run list`, `liquid run status`; and how numbers are
written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from liquid_train.errors import UserError
from liquid_train.report.run_reader import (
    RunRecord,
    config_value,
    is_run,
    last,
    number,
    read_run,
    seconds_since_written,
    summarize,
    summary,
    train_seconds,
)

NONE = "–"


def percent(value: Any) -> str:
    """0.8712 -> '87.1%'."""
    found = number(value)
    return NONE if found is None else f"{100 * found:.1f}%"


def plain(value: Any) -> str:
    """A number in at most four significant digits, whole ones with thousands separators."""
    found = number(value)
    if found is None:
        return NONE
    return f"{int(found):,}" if found == int(found) else f"{found:,.1f}" if abs(found) >= 1000 else f"{found:.4g}"


def quantity(value: Any) -> str:
    """12,345,678 -> '12.3 M'."""
    found = number(value)
    if found is None:
        return NONE
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e4, " k")):
        if abs(found) >= size:
            return f"{found / (size if size > 1e4 else 1e3):.3g}{unit}"
    return f"{found:,.0f}"


def duration(seconds: Any) -> str:
    """Seconds -> '42 s', '7 min 03 s', '2 h 15 min'."""
    found = number(seconds)
    if found is None:
        return NONE
    total = round(found)
    if total < 60:
        return f"{total} s"
    return (
        f"{total // 60} min {total % 60:02d} s" if total < 3600 else f"{total // 3600} h {total % 3600 // 60:02d} min"
    )


def type_in_prose(name: Any) -> str:
    """An answer type of evals/vqa.json as the tables call it: the data says color, the prose colour."""
    return str(name).replace("color", "colour")


def print_summary(run_dir: str | Path, console: Console | None = None) -> None:
    """The run's headline numbers as a table, then where the report is. UserError when it is no run."""
    console = console or Console()
    head = summary(run_dir)
    if head["vqa"]:
        console.print(vqa_table(head))
    if head["t2i"]:
        console.print(t2i_table(head["t2i"]))
    console.print(training_table(head))
    for name, command in (("vqa", "questions"), ("t2i", "generated images")):
        if not head[name]:
            console.print(f"No evaluation of {command} yet: liquid eval checkpoint={escape(head['folder'])}")
    console.print(
        f"Report: {escape(head['report'])}"
        if head["report"]
        else f"No report yet: liquid run report {escape(head['folder'])}",
        soft_wrap=True,
    )


def new_table(title: str, *columns: str) -> Table:
    """The first column is text, the others are numbers; without column names a table of pairs."""
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_header=bool(columns),
    )
    for i, column in enumerate(columns or ("", "")):
        table.add_column(column, justify="right" if i else "left", overflow="fold")
    return table


def vqa_table(head: dict[str, Any]) -> Table:
    table = new_table("Questions about unseen images", "Answer type", "Questions", "Right", "Blind", "Shuffled images")
    for row in head["vqa"]["rows"]:
        table.add_row(
            escape(type_in_prose(row["name"])),
            plain(row["count"]),
            percent(row["accuracy"]),
            percent(row["blind"]),
            percent(row["shuffled"]),
        )
    return table


def t2i_table(t2i: dict[str, Any]) -> Table:
    table = new_table("Images generated from words")
    table.add_row("images", plain(t2i.get("count")))
    table.add_row("right colour", percent(t2i.get("right_color")))
    table.add_row("right shape", percent(t2i.get("right_shape")))
    table.add_row("distinct of 10, least varied prompt", plain(t2i.get("distinct_of_10")))
    table.add_row("Fréchet distance (not Inception)", plain(t2i.get("frechet_distance")))
    return table


def training_table(head: dict[str, Any]) -> Table:
    table = new_table(f"Training, {head['state']}")
    for task, loss in head["heldout"]["loss"].items():
        accuracy = head["heldout"]["accuracy"].get(task)
        table.add_row(
            f"held-out loss, {escape(task)}",
            f"{loss:.3f}" + (f" (token accuracy {percent(accuracy)})" if accuracy is not None else ""),
        )
    planned = head["planned_steps"]
    table.add_row("steps", f"{head['step']:,}" + (f" of {planned:,}" if planned else ""))
    table.add_row("tokens", quantity(head["tokens"]))
    table.add_row("training time", duration(head["train_seconds"]))
    table.add_row("tokens per second", quantity(head["tokens_per_second"]))
    return table


def list_runs(root: str | Path, console: Console | None = None) -> None:
    """A table of the runs in a folder and one level below, newest first. UserError when there is no such folder."""
    console = console or Console()
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give the folder that holds runs")
    folders = [path for path in (*root.glob("*"), *root.glob("*/*")) if path.is_dir() and is_run(path)]
    if not folders:
        console.print(f"No runs in {escape(str(root))}.")
        return
    table = new_table(
        f"Runs in {escape(str(root))}", "Run", "State", "Step", "Tokens", "Loss", "VQA", "Colour", "Shape", "Report"
    )
    for folder in sorted(folders, key=lambda path: (path.stat().st_mtime, path.name), reverse=True):
        run = read_run(folder)
        head = summarize(run)
        cells = [
            run.state,
            f"{run.step:,}",
            quantity(run.tokens),
            plain(head["loss"]),
            percent(run.vqa.get("accuracy")),
            percent(run.t2i.get("right_color")),
        ]
        table.add_row(
            escape(folder.relative_to(root).as_posix()),
            *cells,
            percent(run.t2i.get("right_shape")),
            "yes" if head["report"] else "no",
        )
    console.print(table)


def status(run_dir: str | Path, console: Console | None = None) -> None:
    """Where a run stands: progress, time left, losses, checkpoints, when it last wrote. UserError when it is no
    run."""
    console = console or Console()
    run = read_run(run_dir)
    head = summarize(run)
    table = new_table(escape(str(run.folder)))
    planned = head["planned_steps"]
    table.add_row("state", run.state)
    table.add_row(
        "step",
        f"{run.step:,}"
        + (f" of {planned:,}" if planned else "")
        + (f" ({percent(run.progress)})" if run.progress is not None else ""),
    )
    table.add_row("tokens", quantity(run.tokens))
    table.add_row("tokens per second, now", quantity(last(run.train, "tokens_per_second")))
    if run.state == "unfinished":
        table.add_row("training time left, at its pace so far", duration(time_left(run)))
    age = seconds_since_written(run.folder)
    if age is not None:
        table.add_row("last logged", f"{duration(age)} ago")
    for task in run.tasks:
        heldout = head["heldout"]["loss"].get(task)
        table.add_row(
            f"loss, {escape(task)}",
            plain(last(run.train, f"loss/{task}")) + (f" (held-out {plain(heldout)})" if heldout is not None else ""),
        )
    table.add_row("checkpoints", escape(", ".join(head["checkpoints"]) or "none"))
    table.add_row("report", escape(head["report"] or "none"))
    console.print(table)
    for note in run.notes:
        console.print(f"Note: {escape(note)}")


def time_left(run: RunRecord) -> float | None:
    """Seconds of training that are left, at the mean pace so far; None where that is not known."""
    done, seconds = run.progress, train_seconds(run.train)
    known = (
        done is not None
        and done > 0
        and seconds > 0
        and (config_value(run.config, "train.steps") or config_value(run.config, "train.tokens"))
    )
    return seconds * (1 - done) / done if known and done is not None else None
