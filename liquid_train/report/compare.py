"""Two runs side by side: every number of their evaluations, and in what they were not measured alike.

RUN/evals/step-NNNNNNNN-NAME.json (newest step of each NAME) -> numbers by metric, provenance by NAME
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from liquid_train.errors import UserError
from liquid_train.report.run_reader import number
from liquid_train.report.tables import NONE, new_table, plain


@dataclass
class Evaluations:
    """Of one run. values: by metric, as the files have them, with `step`. provenance: by name of the measurement."""

    folder: Path
    values: dict[str, dict[str, Any]] = field(default_factory=dict)
    provenances: dict[str, dict[str, Any]] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)


def read_evaluations(run_dir: Path) -> Evaluations:
    """The newest measurement of every name. Raises UserError for a folder without any."""
    folder = run_dir / "evals" if (run_dir / "evals").is_dir() else run_dir
    found = Evaluations(run_dir)
    for path in sorted([*folder.glob("model-*.json"), *folder.glob("step-*-*.json")]):  # later steps last
        content = read(path)
        if content is None:
            found.unreadable.append(path.name)
            continue
        for key in [k for k, v in found.values.items() if v["name"] == content["name"]]:
            del found.values[key]  # of an earlier step
        found.provenances[content["name"]] = content["receipt"]
        found.values |= {
            key: {**value, "step": content["step"], "name": content["name"]} for key, value in content["values"].items()
        }
    if not found.values:
        raise UserError(f"{run_dir}: no evaluations there (evals/step-*.json); liquid eval checkpoint={run_dir}")
    return found


def read(path: Path) -> dict[str, Any] | None:
    """None for a file that is no measurement."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    parts = {"name": str, "values": dict, "receipt": dict}
    good = (
        isinstance(content, dict)
        and "step" in content
        and all(isinstance(content.get(key), kind) for key, kind in parts.items())
    )
    return content if good and all(isinstance(value, dict) for value in content["values"].values()) else None


def differences(a: Evaluations, b: Evaluations) -> list[str]:
    """One line for every part of a provenance in which a measurement of both runs differs."""
    lines = []
    for name in a.provenances:
        if name in b.provenances:
            one, other = a.provenances[name], b.provenances[name]
            lines += [
                f"{name}: {key}: {short(one.get(key))} | {short(other.get(key))}"
                for key in dict.fromkeys([*one, *other])
                if one.get(key) != other.get(key)
            ]
    return lines


def short(value: Any) -> str:
    """A value for one line: digests by their first twelve letters."""
    if isinstance(value, str):
        return value[:12] if len(value) == 64 and set(value) <= set("0123456789abcdef") else value
    return "nothing" if value is None else json.dumps(value)


def compare(a_dir: Path, b_dir: Path, *, strict: bool = False, console: Console | None = None) -> int:
    """Print the table and what the provenance do not share. 0, or 2 when `strict` and something was not measured alike.

    Raises UserError for a folder without evaluations.
    """
    console = console or Console()
    a, b = read_evaluations(a_dir), read_evaluations(b_dir)
    table = new_table(
        "Evaluations", "Metric", f"A: {escape(a_dir.name)}", f"B: {escape(b_dir.name)}", "B - A", "Intervals"
    )
    for key in dict.fromkeys([*a.values, *b.values]):
        one, other = a.values.get(key), b.values.get(key)
        table.add_row(escape(key), cell(one), cell(other), change(one, other), apart(one, other))
    console.print(table)
    for run in (a, b):
        for name in run.unreadable:
            console.print(
                f"Note: {escape(str(run.folder))}: {escape(name)} could not be read and was left out.", soft_wrap=True
            )
    lines = differences(a, b)
    if lines:
        console.print(
            "Not measured alike (A | B), so these numbers do not compare:",
            *(f"  {escape(line)}" for line in lines),
            sep="\n",
            soft_wrap=True,
        )
    return 2 if strict and lines else 0


def cell(value: dict[str, Any] | None) -> str:
    """'0.871 [0.85, 0.89] n=1,000'."""
    if value is None:
        return NONE
    low, high = number(value.get("low")), number(value.get("high"))
    interval = f" [{plain(low)}, {plain(high)}]" if low is not None and high is not None else ""
    return f"{plain(value.get('value'))}{escape(interval)} n={plain(value.get('n'))}"


def change(a: dict[str, Any] | None, b: dict[str, Any] | None) -> str:
    one, other = (number(v.get("value")) if v else None for v in (a, b))
    return f"{other - one:+.4g}" if one is not None and other is not None else NONE


def apart(a: dict[str, Any] | None, b: dict[str, Any] | None) -> str:
    """Whether the 95% intervals overlap: apart is a clear difference, overlapping ones leave it open."""
    if a is None or b is None:
        return NONE
    bounds = [number(v.get(key)) for v in (a, b) for key in ("low", "high")]
    if any(bound is None for bound in bounds):
        return NONE
    a_low, a_high, b_low, b_high = (float(bound or 0) for bound in bounds)
    return "apart" if a_high < b_low or b_high < a_low else "overlap"
