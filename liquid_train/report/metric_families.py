"""Which numbers of an evaluation belong together: one figure of the report a family, and the few that a terminal line
has room for.

Names are those of metrics.jsonl without eval/ (docs/evaluation.md). FAMILIES holds those of the metrics that the
package began with; a metric that states its own has them in its files evals/step-NNNNNNNN-NAME.json. A number of no
family has a figure of its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from liquid_train.measurement.families import MetricFamily


@dataclass(frozen=True)
class Place:
    """Where a number is drawn: in the figure `title`, as the line `label`."""

    title: str
    label: str
    unit: str = ""
    chance: float | None = None


FAMILIES = (
    MetricFamily("Questions answered right", r"vqa_accuracy(_(?P<line>\w+))?", "%"),
    MetricFamily("Images generated as asked", r"right_(?P<line>color|shape)", "%"),
    MetricFamily("FID", r"fid(_(?P<line>\w+))?"),
    MetricFamily("Fréchet distance (not FID)", r"frechet_(?P<line>\w+)"),
    MetricFamily("KID", r"kid(_(?P<line>\w+))?"),
    MetricFamily("Kernel distance (not KID)", r"kernel_(?P<line>\w+)"),
    MetricFamily("Precision and recall, generated images", r"(?P<line>precision|recall)", "%"),
    MetricFamily("Self-VQAScore, generated images", r"self_vqascore", "%"),
    MetricFamily("Right from wrong captions, AUC", r"caption_auc/(?P<line>.+)", chance=0.5),
    MetricFamily("Self-VQAScore, right captions", r"self_vqascore_right/(?P<line>.+)", "%"),
    MetricFamily("Self-VQAScore, wrong captions", r"self_vqascore_wrong/(?P<line>.+)", "%"),
)
HEADLINES = (
    "vqa_accuracy",
    "right_color",
    "right_shape",
    "fid",
    "frechet_distance",
    "kid",
    "kernel_distance",
    "self_vqascore",
    "caption_auc/color",
)


def place(name: str, stated: Sequence[MetricFamily] = ()) -> Place:
    """The figure and the line of a number. stated: by the run's own metrics; they come first."""
    for family in (*stated, *FAMILIES):
        found = re.fullmatch(family.pattern, name)
        if found:
            line = found.groupdict().get("line")
            return Place(family.title, spelled(line) if line else "all", family.unit, family.chance)
    return Place(spelled(name), "all", "%" if "accuracy" in name else "")


def spelled(name: str) -> str:
    """full_caption_color -> full caption colour."""
    return name.replace("yes_no", "yes/no").replace("_", " ").replace("color", "colour").replace("vqa", "VQA")


def headline(found: dict[str, Any]) -> str:
    """One terminal line of an evaluation: held-out losses, the headlines, and how many numbers more metrics.jsonl
    has."""
    losses = [(key.removeprefix("val/loss/"), value) for key, value in found.items() if key.startswith("val/loss/")]
    shown = [(name, found[f"eval/{name}"]) for name in HEADLINES if f"eval/{name}" in found]
    parts = [f"val loss {', '.join(f'{task} {value:.4g}' for task, value in losses)}"] if losses else []
    parts += [f"{name} {value:.4g}" for name, value in shown]
    more = len(found) - len(losses) - len(shown)
    rest = f"{more} more in metrics.jsonl"
    return rest if not parts else ", ".join(parts) + (f" ({rest})" if more else "")
