"""`liquid eval checkpoint=... evals=paper`: one page of our numbers next to the paper's, as paper.md and paper.html.

    conf/sheet/paper.yaml -> measurable (what lacks its files is left out) -> evals/run.py measures -> write_sheet

The two pages say the same. Nothing outside paper.html is needed to read it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from evals.chosen import find_metric
from evals.metric import value_of
from evals.paper.numbers import GROUPS, MODELS, PAPER, Row
from evals.settings import EvalJob
from liquid_train.files import naming
from liquid_train.measurement.measurement import Measurement, Value
from liquid_train.packages import install_command

UNKNOWN = "not verified here"
NONE = "–"
# what each page shows: conf/sheet/
SHEETS = {"paper": tuple(dict.fromkeys(row.metric for rows in GROUPS.values() for row in rows))}
ALSO_NEEDED = {"reference_quality": ("features.path",)}  # only so are its numbers FID


def measurable(config: EvalJob) -> tuple[EvalJob, dict[str, str]]:
    """(the job without the metrics that cannot be measured, why by metric)."""
    why = {
        name: f"give {', '.join(f'{key}=...' for key in lacking)}"
        for name in config.metrics
        if (lacking := not_given(config, name))
    }
    if "language" in config.metrics and find_spec("lm_eval") is None:
        why["language"] = install_command("language")
    # asked for by nothing that is left
    features = config.features if config.features.path is not None else replace(config.features, kind="vq")
    return replace(config, metrics=[name for name in config.metrics if name not in why], features=features), why


def not_given(config: EvalJob, metric: str) -> list[str]:
    """Keys without a value that the metric needs."""
    others = [key for key in ALSO_NEEDED.get(metric, ()) if value_of(config, key) is None]
    return [*find_metric(metric, "metrics")(metric, config).not_given(), *others]


@dataclass(frozen=True)
class Line:
    """One row as the pages show it. ours: {"value", "interval", "n"}; empty where it was not measured, and `why`."""

    label: str
    ours: dict[str, str]
    why: str
    published: list[str]
    source: str
    note: str


def write_sheet(folder: Path, title: str, found: dict[str, Measurement], why: dict[str, str]) -> None:
    """paper.md and paper.html into `folder`. why: by metric, of those that were not measured."""
    groups = {name: [line(row, found, why) for row in rows] for name, rows in GROUPS.items()}
    notes = [f"{name}: {warning}" for name, measured in found.items() for warning in measured.warnings]
    about = settings(found)
    for name, content in (("paper.md", as_markdown), ("paper.html", as_html)):
        with naming(folder / name):
            (folder / name).write_text(content(title, groups, about, notes), encoding="utf-8")


def line(row: Row, found: dict[str, Measurement], why: dict[str, str]) -> Line:
    values = found[row.metric].values if row.metric in found else {}
    key = next((key for key in row.keys if key in values), None)
    reason = (
        ""
        if key is not None
        else why.get(
            row.metric, f"no {' or '.join(row.keys)} among its numbers" if row.metric in found else "not among metrics"
        )
    )
    known = [f"{number:,.{paper_digits(row)}f}" if number is not None else NONE for number in row.published]
    note = "; ".join([*([f"here {key}"] if key is not None else []), *([row.note] if row.note else [])])
    return Line(
        row.label,
        numbers(values[key], row) if key else {},
        reason,
        known if row.table else [UNKNOWN] * len(MODELS),
        row.table or UNKNOWN,
        note,
    )


def paper_digits(row: Row) -> int:
    """As many as the paper prints."""
    return 2 if row.digits > 1 else 1


def numbers(value: Value, row: Row) -> dict[str, str]:
    def text(number: float) -> str:
        return f"{row.scale * number:,.{row.digits}f}"

    interval = f"{text(value.low)} to {text(value.high)}" if value.low is not None and value.high is not None else NONE
    return {"value": text(value.value), "interval": interval, "n": f"{value.n:,}"}


def settings(found: dict[str, Measurement]) -> list[str]:
    """What was measured how, one line a metric; a metric's file has its whole provenance."""
    lines = []
    for name, measured in found.items():
        r = measured.provenance
        sampler = ", ".join(f"{key} {value}" if value is not None else key for key, value in (r.sampler or {}).items())
        lines.append(
            f"{name}: " + "; ".join(part for part in (sampler, r.features, r.resize, r.dtype, f"code {r.code}") if part)
        )
    return lines


LEGEND = (
    f"{NONE}: the paper's table has no number of this model. {UNKNOWN}: no table of it could be read. Intervals "
    "are 95%."
)


def as_markdown(title: str, groups: dict[str, list[Line]], about: list[str], notes: list[str]) -> str:
    head = ["", "this model", "95% interval", "n", *MODELS, "source", "note"]
    out = [f"# {title}", "", f"Next to the numbers of {PAPER}, by its model. {LEGEND}"]
    for group, lines in groups.items():
        rows = [[x.label, *cells(x), *x.published, x.source, x.note] for x in lines]
        out += [
            "",
            f"## {group}",
            "",
            *(f"| {' | '.join(escaped(cell) for cell in row)} |" for row in (head, ["---"] * len(head), *rows)),
        ]
    for heading, texts in (("How it was measured", about), ("Warnings", notes)):
        out += ["", f"## {heading}", "", *(f"- {text}" for text in texts)] if texts else []
    return "\n".join(out) + "\n"


def cells(line: Line) -> list[str]:
    return (
        [line.ours["value"], line.ours["interval"], line.ours["n"]]
        if line.ours
        else [f"not measured: {line.why}", NONE, NONE]
    )


def escaped(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")


def as_html(title: str, groups: dict[str, list[Line]], about: list[str], notes: list[str]) -> str:
    import jinja2

    template = (Path(__file__).parent / "template.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(template).render(
        title=title, groups=groups, about=about, notes=notes, models=MODELS, paper=PAPER, legend=LEGEND
    )
