"""The report's curves: matplotlib figures as inline SVG that takes its colours and its font from the page.

matplotlib writes fixed colours. Every figure is therefore drawn in a few sentinel colours, and those are replaced by
CSS variables afterwards, so that one image serves light mode, dark mode and paper. Figures are small (about a phone's
width) and the page lays them out in a grid: text stays readable on every screen.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, field
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from liquid_train.report.metric_families import place
from liquid_train.report.run_reader import RunRecord, number, series

SENTINELS = {
    "#010203": "var(--text-soft)",
    "#020304": "var(--rule)",
    "#030405": "var(--train)",
    "#040506": "var(--heldout)",
    "#050607": "var(--baseline)",
    "#060708": "var(--third)",
    "#070809": "var(--fourth)",
}
TEXT, RULE, TRAIN, HELDOUT, BASELINE, THIRD, FOURTH = SENTINELS
LINES = (HELDOUT, TRAIN, THIRD, FOURTH)  # of one figure with several curves; beyond them, dashed
SIZE = (4.3, 2.35)  # inches; at 72 dots an inch this is 310 x 169 CSS pixels before the page scales it
LEGEND_ROW = 0.19  # inches
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it takes the page's font
    "text.parse_math": False,  # a task or source may be called a$b
    "font.size": 8.5,
    "text.color": TEXT,
    "axes.edgecolor": RULE,
    "axes.labelcolor": TEXT,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "grid.color": RULE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.linewidth": 0.6,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "path.simplify": True,
}

Points = tuple[list[int], list[float]]  # steps and values
NOTHING: Points = ([], [])


@dataclass(frozen=True)
class Curve:
    """One figure. `train` is drawn raw (faint) and smoothed, `heldout` as points, `lines` as points with a legend,
    `baseline` as a dashed level."""

    name: str  # unique on the page
    title: str
    train: Points = NOTHING
    heldout: Points = NOTHING
    lines: dict[str, Points] = field(default_factory=dict)  # by label
    baseline: float | None = None
    raw_only: bool = False  # no noise in it: one solid line
    unit: str = ""  # "", "%" (values are shares), "log", "sci" (learning rates), "count" (4.2 k) or "s" (seconds)

    @property
    def empty(self) -> bool:
        return not self.values

    @property
    def values(self) -> list[float]:
        return [value for _, values in (self.train, self.heldout, *self.lines.values()) for value in values]


def smooth(values: list[float], width: int) -> np.ndarray:
    """Centred moving mean, [n] -> [n], narrower towards both ends: unlike an exponential one it does not lag after a
    steep fall."""
    total: np.ndarray = np.concatenate([[0.0], np.cumsum(values)])
    i = np.arange(len(values))
    half = np.minimum(width // 2, np.minimum(i, len(values) - 1 - i))
    means: np.ndarray = (total[i + half + 1] - total[i - half]) / (2 * half + 1)
    return means


def thin(steps: list[int], values: list[float], bins: int = 200) -> Points:
    """At most two points a bin, its lowest and its highest in order: a long run's outline stays, its size does not."""
    if len(values) <= 2 * bins:
        return steps, values
    keep: list[int] = []
    for part in np.array_split(np.arange(len(values)), bins):
        inside = np.asarray(values)[part]
        keep += sorted({int(part[inside.argmin()]), int(part[inside.argmax()])})
    return [steps[i] for i in keep], [values[i] for i in keep]


def binned(steps: list[int], values: list[float], bins: int = 40) -> Points:
    """Means over at most `bins` stretches of steps, each at its last step: what happens now and then counts with the
    steps around it."""
    parts = [part for part in np.array_split(np.arange(len(values)), bins) if len(part)]
    return [steps[part[-1]] for part in parts], [float(np.asarray(values)[part].mean()) for part in parts]


def curve_svg(curve: Curve) -> str:
    """The figure as an <svg> element, without identifiers that another figure on the page could also use."""
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": curve.name}):
        columns = 2 if len(curve.lines) == 4 else 3
        figure = Figure(figsize=(SIZE[0], SIZE[1] + LEGEND_ROW * -(-len(curve.lines) // columns)), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        _draw(axes, curve)
        _format(axes, curve)
        if curve.lines:
            figure.legend(loc="outside lower center", ncols=columns, frameon=False, handlelength=1.4, columnspacing=1.2)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Creator": None, "Date": None, "Format": None, "Type": None})
    return _inline(buffer.getvalue(), curve)


def _draw(axes: Axes, curve: Curve) -> None:
    steps, values = curve.train
    if len(values) == 1:
        axes.plot(steps, values, "o", color=TRAIN, markersize=3)
    elif curve.raw_only:
        axes.plot(*thin(steps, values), color=TRAIN, linewidth=1.5)
    elif values:
        axes.plot(*thin(steps, values), color=TRAIN, linewidth=0.7, alpha=0.3)
        axes.plot(
            *thin(steps, list(smooth(values, len(values) // 30))), color=TRAIN, linewidth=1.5, solid_joinstyle="round"
        )
    if curve.heldout[0]:
        axes.plot(*curve.heldout, color=HELDOUT, linewidth=1, marker="o", markersize=3.6)
    for i, (label, points) in enumerate(curve.lines.items()):
        dashes = "-" if i < len(LINES) else (0, (2, 2))
        axes.plot(
            *points, color=LINES[i % len(LINES)], linewidth=1, linestyle=dashes, marker="o", markersize=2.6, label=label
        )
    if curve.baseline is not None:
        axes.axhline(curve.baseline, color=BASELINE, linewidth=1, linestyle=(0, (4, 3)))


def _format(axes: Axes, curve: Curve) -> None:
    values = curve.values
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("step")
    if curve.unit == "log" and min(values) > 0:
        wide = max(values) / min(values) > 300
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(_FORMATS[curve.unit])
    if curve.unit in ("sci", "count", "s"):
        axes.set_ylim(bottom=0)
    # one odd step must not flatten the curve: outliers leave the frame
    if curve.unit in ("count", "s") and max(values) > 0:
        axes.set_ylim(top=1.12 * float(np.percentile(values, 99.5)))


_FORMATS = {
    "": FuncFormatter(lambda y, _: f"{y:.4g}"),
    "log": FuncFormatter(lambda y, _: f"{y:g}"),
    "sci": FuncFormatter(lambda y, _: f"{y:.2g}"),
    "%": FuncFormatter(lambda y, _: f"{100 * y:.4g}%"),
    "count": EngFormatter(sep=""),
    "s": FuncFormatter(lambda y, _: f"{y:.3g}"),
}


def _inline(svg: str, curve: Curve) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<svg [^>]*viewBox=\"([^\"]*)\"[^>]*>", r'<svg viewBox="\1" role="img">', svg, count=1)
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.S)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.S)
    svg = re.sub(r"<g id=\"[^\"]*\">", "<g>", svg)
    prefix = re.sub(r"[^a-zA-Z0-9]+", "-", curve.name)
    svg = re.sub(r"(\bid=\"|url\(#|href=\"#)", rf"\g<1>{prefix}-", svg)
    # its rule would hold for the whole page; the page's own css has it
    svg = re.sub(r"<style.*?</style>\s*", "", svg, flags=re.S)
    svg = re.sub(r"font-family: [^;\"]*;?\s*", "", svg)
    for sentinel, variable in SENTINELS.items():
        svg = svg.replace(sentinel, variable)
    return svg.strip()


@dataclass(frozen=True)
class Group:
    """Curves under one heading; `missing` says in one sentence why there are none."""

    anchor: str
    title: str
    about: str
    missing: str
    figures: list[tuple[str, str]]  # title and svg


def curve_groups(run: RunRecord) -> list[Group]:
    """Every curve of a run: learning per task, evaluations over training, optimizer, throughput."""
    blind = " Dashed, of questions: the blind baseline over all test questions." if run.vqa else ""
    packing = "Packing efficiency is the share of positions of a packed sequence that hold a token."
    made = [
        (
            "learning",
            "Learning",
            "Loss in nats per target token, and share of target tokens predicted right.",
            "No training step has been logged yet.",
        ),
        (
            "evaluations",
            "Evaluations while training",
            "Measured on a fixed subset; captions are those of real held-out images." + blind,
            "This run has no periodic evaluations.",
        ),
        ("optimizer", "Optimizer", "", "No learning rate or gradient norm has been logged."),
        ("throughput", "Throughput", packing, "No throughput has been logged."),
    ]
    curves = (_learning(run), _evaluations(run), _optimizer(run), _throughput(run))
    return [
        Group(*texts, [(c.title, curve_svg(c)) for c in some if not c.empty])
        for texts, some in zip(made, curves, strict=True)
    ]


def _learning(run: RunRecord) -> list[Curve]:
    curves = [Curve("loss", "Loss, all tasks", series(run.train, "loss"), series(run.evaluations, "val/loss"))]
    for kind, title, unit in (("loss", "Loss", ""), ("accuracy", "Token accuracy", "%")):
        for task in run.tasks:
            key = f"{kind}/{task}"
            curves.append(
                Curve(key, f"{title}, {task}", series(run.train, key), series(run.evaluations, f"val/{key}"), unit=unit)
            )
    return curves


def _evaluations(run: RunRecord) -> list[Curve]:
    """One figure a family of numbers; a legend where there are several."""
    keys = dict.fromkeys(key for line in run.evaluations for key in line if key.startswith("eval/"))
    places = {key: place(key.removeprefix("eval/"), run.families) for key in keys}
    figures: dict[str, list[str]] = {}
    for key in keys:
        figures.setdefault(places[key].title, []).append(key)
    curves = []
    for title, own in figures.items():
        first = places[own[0]]
        baseline = number(run.vqa.get("blind_accuracy")) if "eval/vqa_accuracy" in own else first.chance
        lines = {places[key].label: series(run.evaluations, key) for key in own}
        single = len(own) == 1
        shown: dict[str, Any] = {"heldout": lines[first.label]} if single else {"lines": lines}
        curves.append(
            Curve(
                own[0],
                f"{title}, {first.label}" if single and first.label != "all" else title,
                baseline=baseline,
                unit=first.unit,
                **shown,
            )
        )
    return curves


def _optimizer(run: RunRecord) -> list[Curve]:
    return [
        Curve("lr", "Learning rate", series(run.train, "lr"), unit="sci", raw_only=True),
        Curve("grad_norm", "Gradient norm, before clipping", series(run.train, "grad_norm"), unit="log"),
    ]


def _throughput(run: RunRecord) -> list[Curve]:
    curves = [
        Curve("tokens_per_second", "Tokens per second", series(run.train, "tokens_per_second"), unit="count"),
        Curve("data_wait", "Share of time waiting for data", series(run.train, "data_wait_fraction"), unit="%"),
        Curve("packing", "Packing efficiency", series(run.train, "packing_efficiency"), unit="%"),
    ]
    keys = dict.fromkeys(key for line in run.train for key in line if key.startswith("time/"))
    timer = {key.removeprefix("time/"): binned(*series(run.train, key)) for key in keys}
    curves.append(
        Curve(
            "time",
            "Seconds a logged step",
            lines={name: points for name, points in timer.items() if any(points[1])},
            unit="s",
        )
    )
    for key, title, unit in (("mfu", "Model FLOPs utilization", "%"), ("memory_gib", "Peak memory, GiB", "")):
        points = series(run.train, key)
        if any(points[1]):  # both stay 0 where a device does not tell
            curves.append(Curve(key, title, points, unit=unit))
    return curves
