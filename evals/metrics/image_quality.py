"""How far generated images are from real ones: Frechet and kernel distance, Frechet at infinitely many images,
precision and recall.

Only with Inception's features are these FID and KID, and only then they are called so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evals.distances.frechet import (
    FLOOR_DRAWS,
    FeatureSums,
    Gaussian,
    frechet_distance,
    frechet_floor,
    frechet_infinity,
)
from evals.distances.kernel import SUBSETS, kernel_distance
from evals.distances.precision_recall import precision_recall
from evals.identity import features_identity, folder_identity
from evals.inputs import Inputs
from evals.metric import Metric
from evals.metrics import METRICS
from evals.sets import EvalSets
from liquid_train.measurement.intervals import Z, bootstrap, bootstrap_name
from liquid_train.measurement.measurement import Measurement, ModelHandle, Value, bare, share
from liquid_train.measurement.provenance import Provenance, arrays_digest, seeds_text, texts_digest
from liquid_train.measurement.settings import FeaturesConfig

RESAMPLES = 200
BOOTSTRAP_FEATURES = 256  # a wider network's covariance takes too long to be resampled
MIN_IMAGES = 20  # below, the smallest subset of the fit to infinity would be a handful


@METRICS.register("image_quality")
class ImageQuality(Metric):
    """Of the generated images."""

    by_default = True
    draws = True
    reads = ("images",)
    while_training = True

    def applies(self, sets: EvalSets) -> None:
        if self.config is None or self.config.images is None:
            super().applies(sets)

    def identity(self) -> Any:
        c = self.job
        return [features_identity(c.features), c.images and folder_identity(c.images), c.quality_reference]

    def prepare(self, inputs: Inputs) -> None:
        _ = inputs.network, inputs.real

    def measure(self, handle: ModelHandle, inputs: Inputs) -> Measurement:
        generated, real = inputs.generated, inputs.real
        about, reconstructed = real.name, None
        if real.original:
            reconstructed = real.reconstructed(handle.image_tokenizer, max(len(generated.pixels), 2))
            about += f"; reconstructions: {len(reconstructed)} of them through the VQ"
        data = ImageSets(
            generated.pixels,
            real.pixels,
            generated.prompts,
            generated.seeds,
            [inputs.category_of(prompt) for prompt in generated.prompts],
            real.categories,
            generated.sampler,
            about,
            reconstructed,
        )
        return image_quality(handle, data, inputs.features, seed=inputs.seed)


@dataclass(frozen=True)
class ImageSets:
    """generated, real: uint8 [n, H, W, 3]. prompts, seeds, generated_categories: one a generated image;
    real_categories: one a real one; None where an image has none. sampler: how they were generated. real_name: what
    the real ones are, in words."""

    generated: np.ndarray
    real: np.ndarray
    prompts: list[str]
    seeds: list[int]
    generated_categories: list[str | None]
    real_categories: list[str | None]
    sampler: dict[str, float | int | None]
    real_name: str
    # real ones through the image tokenizer: the best that a model which generates codes can do
    reconstructed: np.ndarray | None = None


def published_name(key: str) -> str:
    """With Inception's features a Frechet distance is FID, a kernel distance KID."""
    return (
        key.replace("frechet_distance", "fid")
        .replace("frechet", "fid")
        .replace("kernel_distance", "kid")
        .replace("kernel", "kid")
    )


def image_quality(handle: ModelHandle, data: ImageSets, config: FeaturesConfig, *, seed: int = 0) -> Measurement:
    """A collective: every rank looks at its share of the generated images. Raises UserError for fewer than 4 images in
    a set."""
    from evals.distances.feature_cache import reference_features, shared_features
    from evals.distances.features import open_features

    network = open_features(config, handle.image_tokenizer)
    folder = Path(config.cache) if config.cache is not None else None
    real = reference_features(handle, network, data.real, folder)
    generated = shared_features(handle, network, data.generated)
    reference = Gaussian.of(real)
    values, warnings = distances(FeatureSums.of(generated), generated, real, reference, seed)
    values |= category_distances(generated, real, data.generated_categories, data.real_categories, seed)
    if data.reconstructed is not None:
        passed = shared_features(handle, network, data.reconstructed)
        values["frechet_of_reconstructions"] = bare(
            frechet_distance(Gaussian.of(passed), reference), len(passed), "the same images are in both sets"
        )
    if config.kind == "inception":
        values = {published_name(key): value for key, value in values.items()}
    provenance = Provenance(
        n=len(data.generated),
        data=arrays_digest(data.real),
        prompts=texts_digest(data.prompts),
        seeds=seeds_text(data.seeds),
        sampler=dict(data.sampler),
        resize=network.resize,
        features=network.name,
        feature_weights=network.weights,
        dtype=handle.dtype,
    )
    return Measurement(values, provenance, {"reference": data.real_name}, warnings)


def distances(
    sums: FeatureSums, generated: np.ndarray, real: np.ndarray, reference: Gaussian, seed: int
) -> tuple[dict[str, Value], list[str]]:
    """generated [n, d], real [m, d] -> values by name, and warnings."""
    n, width = generated.shape
    distance = frechet_distance(sums.gaussian(), reference)
    if width <= BOOTSTRAP_FEATURES:
        low, high = bootstrap(
            n,
            lambda picked: frechet_distance(Gaussian.of(generated[picked]), reference),
            seed=seed,
            resamples=RESAMPLES,
            reflected=True,
        )
        values = {
            "frechet_distance": Value(
                distance, n, max(low, 0.0), max(high, 0.0), bootstrap_name(RESAMPLES, seed, reflected=True)
            )
        }
    else:
        values = {"frechet_distance": bare(distance, n, f"{width} features take too long to resample")}
    floor = frechet_floor(real, n, seed)
    if floor is not None:
        values["frechet_floor"] = bare(floor, n, f"mean of {FLOOR_DRAWS} draws of real images")
    if n >= MIN_IMAGES:
        values["frechet_infinity"] = bare(frechet_infinity(generated, reference, seed, max(n // 4, 2)), n, "a fit")
    values["kernel_distance"], deviation = kernel_value(generated, real, seed)
    values["kernel_deviation"] = bare(deviation, n, "a deviation itself")
    precision, recall = precision_recall(generated, real)
    values |= {"precision": share(precision), "recall": share(recall)}
    return values, small_sample_warnings(n, len(real), width, floor)


def kernel_value(generated: np.ndarray, real: np.ndarray, seed: int) -> tuple[Value, float]:
    """(the kernel distance, its standard deviation over subsets)."""
    mean, deviation, size = kernel_distance(generated, real, seed)
    kind = f"mean +- {Z:.2f} standard deviations of {SUBSETS} subsets of {size} images"
    return Value(mean, len(generated), mean - Z * deviation, mean + Z * deviation, kind), deviation


def small_sample_warnings(generated: int, real: int, width: int, floor: float | None) -> list[str]:
    """A set with fewer images than features + 1 has a covariance without full rank, and its distance is too high."""
    warnings = []
    for name, n in (("generated", generated), ("real", real)):
        if n < width + 1:
            known = f"; {generated} real images themselves are {floor:.4g} from the others" if floor is not None else ""
            warnings.append(
                f"{n} {name} images for {width} features: the covariance has rank {min(n - 1, width)}, the Frechet "
                f"distance is too high{known}. "
                f"Take {width + 1} or more, or read the kernel distance, which has no such bias."
            )
    return warnings


def category_distances(
    generated: np.ndarray,
    real: np.ndarray,
    generated_categories: Sequence[str | None],
    real_categories: Sequence[str | None],
    seed: int,
) -> dict[str, Value]:
    """Within each category: frechet_distance/CATEGORY where it has 2 images or more on both sides,
    kernel_distance/CATEGORY from 4 on."""
    values: dict[str, Value] = {}
    for category in sorted({c for c in generated_categories if c is not None}):
        a, b = (
            features[[c == category for c in own]]
            for features, own in ((generated, generated_categories), (real, real_categories))
        )
        if min(len(a), len(b)) >= 2:
            values[f"frechet_distance/{category}"] = bare(
                frechet_distance(Gaussian.of(a), Gaussian.of(b)), len(a), "too few images a category to resample"
            )
        if min(len(a), len(b)) >= 4:
            values[f"kernel_distance/{category}"] = kernel_value(a, b, seed)[0]
    return values
