"""The one shape of every metric: (handle, data, config) -> Measurement, and its file evals/step-NNNNNNNN-NAME.json.

    {"name", "step", "values": {metric: {"value", "n", "low", "high", "interval"}}, "receipt": {...}, "warnings":
    [...]}, and "families" where the metric says how the report shows its numbers

low and high are the 95% interval, null where none is known; `interval` says which kind, or why there is none.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from liquid_train.errors import UserError
from liquid_train.files import write_synced
from liquid_train.measurement.families import MetricFamily
from liquid_train.measurement.intervals import WILSON, bootstrap_name, mean_interval, wilson
from liquid_train.measurement.provenance import Provenance, as_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from liquid_train.generate.session import Session
    from liquid_train.image_tokenizer.base import ImageTokenizer
    from liquid_train.vocabulary import Vocabulary

Progress = Callable[[str, int, int], None]


def silent(what: str, done: int, total: int) -> None:
    """No progress."""


def alone() -> None:
    """A rank that holds the whole model need not wait for the others before it meets them."""


@dataclass(frozen=True)
class ModelHandle:
    """A model to be measured, on every rank.

    grid: rows and columns of codes, empty where it saw no images; suffix: of a text-to-image prompt. rank r of
    world_size takes every world_size-th item, and sums are made over all ranks. multiratio: width and height in pixels
    of the images whose size the prompt states (liquid.json: sizes). settle: called before any collective (LiveModel).
    """

    model: PreTrainedModel
    vocabulary: Vocabulary
    image_tokenizer: ImageTokenizer
    grid: tuple[int, ...]
    suffix: str
    rank: int = 0
    world_size: int = 1
    progress: Progress = silent
    multiratio: Sequence[Sequence[int]] = ()
    settle: Callable[[], None] = alone

    @classmethod
    def of(cls, session: Session, image_tokenizer: ImageTokenizer, progress: Progress = silent) -> ModelHandle:
        card = session.card
        return cls(
            session.model,
            session.vocabulary,
            image_tokenizer,
            tuple(card.grid),
            card.prompt,
            progress=progress,
            multiratio=card.sizes,
        )

    @property
    def usual_size(self) -> tuple[int, int]:
        """Width and height in pixels of an image of `grid`."""
        rows, columns = self.grid
        return columns * self.image_tokenizer.downsampling, rows * self.image_tokenizer.downsampling

    @property
    def stated_size(self) -> tuple[int, int] | None:
        """The usual size where a prompt states it, as in training on images of several sizes."""
        return self.usual_size if list(self.usual_size) in map(list, self.multiratio) else None

    @property
    def dtype(self) -> str:
        return str(self.model.dtype).removeprefix("torch.")

    def own(self, count: int) -> list[int]:
        """Numbers of the items that this rank measures."""
        return list(range(self.rank, count, self.world_size))

    def gathered(self, values: np.ndarray) -> np.ndarray:
        """Every rank's values where the others have zeros -> all of them, on every rank, with the type they had; a
        collective."""
        if self.world_size == 1:
            return values
        import torch
        import torch.distributed as dist

        self.settle()
        total = torch.from_numpy(np.ascontiguousarray(values)).to(self.model.device)
        dist.all_reduce(total)
        return total.cpu().numpy()


@dataclass(frozen=True)
class Value:
    """One number with its 95% interval, by the kind that `interval` names."""

    value: float
    n: int
    low: float | None
    high: float | None
    interval: str


def share(right: Sequence[bool] | np.ndarray) -> Value:
    """Share of the right ones. Raises UserError for none: a metric of nothing is not 0."""
    count = len(right)
    if count == 0:
        raise UserError("nothing to measure: no item is left")
    hits = int(np.sum(right))
    return Value(hits / count, count, *wilson(hits, count), WILSON)


def average(values: Sequence[float] | np.ndarray, seed: int = 0, resamples: int = 1000) -> Value:
    """Mean of real values with its bootstrap interval. Raises UserError for none."""
    if len(values) == 0:
        raise UserError("nothing to measure: no item is left")
    return Value(
        float(np.mean(values)),
        len(values),
        *mean_interval(values, seed=seed, resamples=resamples),
        bootstrap_name(resamples, seed),
    )


def bare(value: float, n: int, why: str) -> Value:
    """A number without an interval, and why."""
    return Value(float(value), n, None, None, f"none: {why}")


@dataclass(frozen=True)
class Measurement:
    """values by metric name. detail: what else a reader wants of it (tables, examples), stored apart. warnings: whole
    sentences."""

    values: dict[str, Value]
    provenance: Provenance
    detail: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def file_name(name: str, step: int | None) -> str:
    """A model that belongs to no step is measured under "model"."""
    return f"{'model' if step is None else f'step-{step:08d}'}-{name}.json"


def write_measurement(
    folder: Path, name: str, step: int | None, measured: Measurement, families: Sequence[MetricFamily] = ()
) -> Path:
    """Write it whole or not at all. What is not finite is null. families: how the report shows the numbers."""
    values = {key: {k: finite(v) for k, v in asdict(value).items()} for key, value in measured.values.items()}
    content: dict[str, Any] = {
        "name": name,
        "step": step,
        "values": values,
        "receipt": as_json(measured.provenance),
        "warnings": measured.warnings,
    }
    if families:
        content["families"] = [asdict(family) for family in families]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file_name(name, step)
    write_synced(path, json.dumps(content, indent=1, ensure_ascii=False))
    return path


def finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
