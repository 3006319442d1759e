"""Captions of real images that are wrong in one thing: what a judge of images and texts must be able to tell from
right ones."""

from __future__ import annotations

import numpy as np

from data_prep.sources.easy_vqa import COLORS, SHAPES
from evals.easy_vqa.prompts import named
from evals.errors import NotMeasurable
from evals.judges.caption_pairs import CaptionPairs
from liquid_train.data.shards import ShardSet


def caption_pairs(shards: ShardSet, count: int, seed: int) -> CaptionPairs:
    """The first `count` images whose caption names a colour and a shape, with captions that are wrong in one of them.

    color, shape: the caption names nothing else. full_caption_color, full_caption_shape: it names the other one too,
    rightly: what a model that looks for one of the two things only cannot tell. Raises NotMeasurable when no caption
    names both.
    """
    random = np.random.default_rng(seed)
    codes: list[np.ndarray] = []
    cases: dict[str, tuple[list[str], list[str]]] = {
        case: ([], []) for case in ("color", "shape", "full_caption_color", "full_caption_shape")
    }
    for sample in shards:
        color, shape = named(sample.get("text", ""))
        if "codes" not in sample or color is None or shape is None:
            continue
        codes.append(sample["codes"])
        other_color, other_shape = another(color, COLORS, random), another(shape, SHAPES, random)
        for case, right, wrong in (
            ("color", f"a {color} shape", f"a {other_color} shape"),
            ("shape", f"a {shape}", f"a {other_shape}"),
            ("full_caption_color", f"a {color} {shape}", f"a {other_color} {shape}"),
            ("full_caption_shape", f"a {color} {shape}", f"a {color} {other_shape}"),
        ):
            cases[case][0].append(right)
            cases[case][1].append(wrong)
        if len(codes) == count:
            break
    if not codes:
        raise NotMeasurable(
            f"{shards.path}: no caption there names a colour and a shape; take captions out of metrics, or give "
            "easy_vqa's test set"
        )
    return CaptionPairs(codes, cases)


def another(own: str, names: tuple[str, ...] | list[str], random: np.random.Generator) -> str:
    """One of the other names, at random."""
    others = [name for name in names if name != own]
    return others[int(random.integers(len(others)))]
