"""What `liquid eval` shows in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from liquid_train.files import read_json

NONE = "–"


def print_tables(folder: Path, console: Console | None = None) -> None:
    """What vqa.json and t2i.json of evals/ hold, as far as they are there."""
    console = console or Console()
    vqa, t2i = (content_of(folder / f"{name}.json") for name in ("vqa", "t2i"))
    if vqa:
        console.print(vqa_table(vqa))
    if t2i:
        console.print(t2i_table(t2i))


def print_values(files: list[Path], console: Console | None = None) -> None:
    """Every number of the given measurement files with its interval."""
    print_numbers([content_of(path)["values"] for path in files], console)


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


def t2i_table(t2i: dict[str, Any]) -> Table:
    title = f"{t2i['count']} images generated from {len(t2i['prompts'])} captions"
    table = Table("", "generated", "judge on real images", title=title, title_justify="left")
    table.add_row("right colour", percent(t2i["right_color"]), percent(t2i["judge_color_accuracy"]))
    table.add_row("right shape", percent(t2i["right_shape"]), percent(t2i["judge_shape_accuracy"]))
    different = f"different images of {t2i['images_per_prompt']} (least, mean)"
    table.add_row(different, f"{t2i['distinct_min']}, {t2i['distinct_mean']:.1f}", "")
    return table


def content_of(path: Path) -> dict[str, Any]:
    """{} where there is no such file."""
    content: dict[str, Any] = read_json(path) if path.is_file() else {}
    return content


def percent(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:.1f}%"
