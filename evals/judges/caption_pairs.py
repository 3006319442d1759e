"""Real images, each with right and wrong captions: what a judge of images and texts must be able to tell apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evals.errors import NotMeasurable
from liquid_train.data.shards import Sample, ShardSet


@dataclass(frozen=True)
class CaptionPairs:
    """codes: one grid a real image; cases: by name, a right and a wrong caption of each image."""

    codes: Sequence[np.ndarray]
    cases: dict[str, tuple[list[str], list[str]]]


def other_captions(shards: ShardSet, count: int) -> CaptionPairs:
    """The first `count` images with a caption; the wrong one is that of the next image whose caption differs.

    Raises NotMeasurable where no two captions differ.
    """
    found = [(s["codes"], s["text"]) for s in _captioned(shards, count)]
    texts = [text for _, text in found]
    if len(set(texts)) < 2:
        raise NotMeasurable(f"{shards.path}: captions needs two different ones there")
    wrong = [next(t for t in [*texts[n:], *texts[:n]] if t != text) for n, text in enumerate(texts)]
    return CaptionPairs([codes for codes, _ in found], {"other_image": (texts, wrong)})


def _captioned(shards: ShardSet, count: int) -> list[Sample]:
    found: list[Sample] = []
    for sample in shards:
        if "codes" in sample and sample.get("text", "").strip():
            found.append(sample)
        if len(found) == count:
            break
    return found
