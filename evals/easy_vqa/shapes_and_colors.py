"""Images generated from the 24 captions of easy-VQA: right colour, right shape, how many are different."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from evals.easy_vqa.prompts import CAPTIONS, named
from evals.easy_vqa.real_images import RealShapes
from evals.easy_vqa.shape_judge import judge
from evals.generated import GeneratedImages
from liquid_train.measurement.measurement import Measurement, ModelHandle, Value, bare, share
from liquid_train.measurement.provenance import Provenance, arrays_digest, seeds_text, texts_digest

# Mean absolute difference of two images (0 to 255) from which they count as different. Measured on the test images:
# two of one caption differ by more than 4 in 99.9% of the pairs (2.0 at least); one image encoded and decoded twice,
# so with a quarter of its codes changed, differs from itself by less than 2 in 95%.
DIFFERENT = 2.0
JUDGE = "drawn_shapes, a judge of colours and outlines"  # as provenance names it


def distinct(pixels: Sequence[np.ndarray]) -> int:
    """How many images differ visibly from all that were counted before them."""
    counted: list[np.ndarray] = []
    for image in pixels:
        now = image.astype(np.float32)
        if all(np.abs(now - other).mean() > DIFFERENT for other in counted):
            counted.append(now)
    return len(counted)


def judge_accuracy(real: RealShapes) -> dict[str, float]:
    """How often the judge is right on real images whose colour or shape is known."""
    verdicts = [judge(p) for p in real.pixels]
    color = [v.color == truth for v, truth in zip(verdicts, real.colors, strict=True) if truth]
    shape = [v.shape == truth for v, truth in zip(verdicts, real.shapes, strict=True) if truth]
    return {"judge_color_accuracy": float(np.mean(color)), "judge_shape_accuracy": float(np.mean(shape))}


def score(pixels: np.ndarray, per_prompt: int) -> dict[str, Any]:
    """pixels [24 * per_prompt, H, W, 3] in the order of CAPTIONS -> shares of right colours and shapes and distinct
    images."""
    rows: list[dict[str, Any]] = []
    for n, prompt in enumerate(CAPTIONS):
        own = pixels[n * per_prompt : (n + 1) * per_prompt]
        color, shape = named(prompt)
        verdicts = [judge(p) for p in own]
        right = {
            "right_color": [v.color == color for v in verdicts],
            "right_shape": [v.shape == shape for v in verdicts],
        }
        rows.append(
            {
                "prompt": prompt,
                **{key: float(np.mean(values)) for key, values in right.items()},
                "distinct": distinct(list(own)),
            }
        )
    counts = [row["distinct"] for row in rows]
    return {
        "count": len(pixels),
        "images_per_prompt": per_prompt,
        "right_color": float(np.mean([row["right_color"] for row in rows])),
        "right_shape": float(np.mean([row["right_shape"] for row in rows])),
        "distinct_of_10": min(counts) if per_prompt == 10 else None,
        "distinct_min": min(counts),
        "distinct_mean": float(np.mean(counts)),
        "prompts": rows,
    }


def shapes_and_colors(handle: ModelHandle, data: GeneratedImages, real: RealShapes, *, per_prompt: int) -> Measurement:
    """Right colours and shapes next to the judge's own accuracy on real images. detail: evals/t2i.json without its
    step."""
    result = {**score(data.pixels, per_prompt), **judge_accuracy(real), **data.sampler, "seed": data.seeds[0]}
    values = right_values(data.pixels, data.prompts)
    values["distinct_mean"] = bare(result["distinct_mean"], len(CAPTIONS), "a count")
    for key in ("judge_color_accuracy", "judge_shape_accuracy"):
        values[key] = bare(result[key], len(real.pixels), "of the judge, not of the model")
    provenance = Provenance(
        n=len(data.pixels),
        data=arrays_digest(real.pixels),
        prompts=texts_digest([*data.prompts, handle.suffix]),
        seeds=seeds_text(data.seeds),
        sampler=dict(data.sampler),
        features=JUDGE,
        dtype=handle.dtype,
    )
    return Measurement(values, provenance, result)


def right_values(pixels: np.ndarray, prompts: Sequence[str]) -> dict[str, Value]:
    """Shares of right colours and right shapes among the images whose prompt names one."""
    verdicts = [(judge(p), *named(text)) for p, text in zip(pixels, prompts, strict=True)]
    color = [v.color == c for v, c, _ in verdicts if c]
    shape = [v.shape == s for v, _, s in verdicts if s]
    return {key: share(values) for key, values in (("right_color", color), ("right_shape", shape)) if values}
