"""Generated images against a folder of real ones that come with their prompts, over all and within each category.

MJHQ-30K        FOLDER/meta_data.json {ID: {"category", "prompt"}}, FOLDER/mjhq30k_imgs/CATEGORY/ID.jpg (or
                FOLDER/CATEGORY/ID.jpg)
any other one   images below FOLDER with their prompt in a .txt of the same name; the first subfolder is the category

One image is drawn of each prompt. Through Inception or a Hugging Face model real ones are seen as they are, through
the image tokenizer's encoder scaled and cut to the model's size. Only features are kept: the sets may be of any size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evals.distances.frechet import FeatureSums, Gaussian
from evals.generated import GeneratedImages
from evals.identity import features_identity, folder_identity
from evals.inputs import Inputs, JobInputs
from evals.json_files import named, read_object
from evals.metric import Metric
from evals.metrics import METRICS
from evals.metrics.image_quality import category_distances, distances, published_name
from evals.real_images import IMAGE_SUFFIXES
from evals.settings import ReferenceConfig
from liquid_train.errors import UserError
from liquid_train.image_tokenizer.preprocess import read_rgb
from liquid_train.measurement.measurement import Measurement, ModelHandle, Progress
from liquid_train.measurement.provenance import Provenance, seeds_text, texts_digest
from liquid_train.measurement.settings import FeaturesConfig

if TYPE_CHECKING:
    from evals.distances.features import FeatureNetwork

DRAWN_TOGETHER = 256  # images that are in memory at a time
LEAST = 4  # images, for a kernel distance


@METRICS.register("reference_quality")
class ReferenceQuality(Metric):
    """One image of each prompt of reference.folder against its real images."""

    needs = {"reference.folder": "FOLDER with real images, as MJHQ-30K's"}

    def identity(self) -> Any:
        c = self.job
        return [asdict(c.reference), folder_identity(c.reference.folder), features_identity(c.features)]

    def read(self) -> None:
        self.reference = read_reference(self.job.reference)

    def prepare(self, inputs: Inputs) -> None:
        _ = inputs.network

    def measure(self, handle: ModelHandle, inputs: Inputs) -> Measurement:
        assert isinstance(inputs, JobInputs)
        return reference_quality(
            handle,
            self.reference,
            inputs.network,
            inputs.draw,
            inputs.features,
            max_bad=self.job.reference.max_bad,
            seed=inputs.seed,
        )


@dataclass(frozen=True)
class RealImage:
    path: Path
    category: str | None
    prompt: str


@dataclass(frozen=True)
class ReferenceSet:
    """images: in the order of the file or of their paths. left_out: {reason: names}."""

    folder: Path
    images: list[RealImage]
    left_out: dict[str, list[str]]


def read_reference(config: ReferenceConfig) -> ReferenceSet:
    """Raises UserError for a folder of another layout, and with counts and names where more must be left out than
    reference.max_bad allows."""
    folder = Path(str(config.folder))
    found, left_out = read_mjhq(folder) if (folder / "meta_data.json").is_file() else read_folder(folder)
    check_left_out(folder, found, left_out, config.max_bad)
    counts: Counter[str | None] = Counter()
    chosen = []
    for image in found:
        counts[image.category] += 1
        if config.per_category is None or counts[image.category] <= config.per_category:
            chosen.append(image)
    return ReferenceSet(folder, chosen, left_out)


def check_left_out(folder: Path, found: list[RealImage], left_out: dict[str, list[str]], max_bad: float) -> None:
    bad = sum(map(len, left_out.values()))
    reasons = "; ".join(f"{reason}: {named(names)}" for reason, names in left_out.items())
    if bad > max_bad * (len(found) + bad):
        raise UserError(
            f"reference.folder={folder}: {bad} of {len(found) + bad} images cannot be used. {reasons}. "
            f"Fix the folder, or allow a larger share with reference.max_bad={max_bad}"
        )
    if len(found) < LEAST:
        remedy = (
            f"give MJHQ-30K's folder with meta_data.json, or one with {LEAST} images or more and a .txt next to each"
        )
        raise UserError(f"reference.folder={folder}: {len(found)} images with a prompt there; {remedy}")


def read_mjhq(folder: Path) -> tuple[list[RealImage], dict[str, list[str]]]:
    images_in = folder / "mjhq30k_imgs" if (folder / "mjhq30k_imgs").is_dir() else folder
    found: list[RealImage] = []
    left_out: dict[str, list[str]] = {}
    for id, row in read_object(folder / "meta_data.json").items():
        category, prompt = (row.get(key) for key in ("category", "prompt")) if isinstance(row, dict) else (None, None)
        if not isinstance(category, str) or not isinstance(prompt, str) or not prompt.strip():
            left_out.setdefault("entries of meta_data.json without a category or a prompt", []).append(id)
            continue
        path = images_in / category / f"{id}.jpg"
        if path.is_file():
            found.append(RealImage(path, category, prompt))
        else:
            left_out.setdefault("missing images", []).append(f"{category}/{path.name}")
    return found, left_out


def read_folder(folder: Path) -> tuple[list[RealImage], dict[str, list[str]]]:
    found: list[RealImage] = []
    left_out: dict[str, list[str]] = {}
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES):
        place, text = path.relative_to(folder), path.with_suffix(".txt")
        try:
            prompt = text.read_text(encoding="utf-8").strip() if text.is_file() else ""
        except (OSError, UnicodeDecodeError):
            prompt = ""
        if prompt:
            found.append(RealImage(path, place.parts[0] if len(place.parts) > 1 else None, prompt))
        else:
            left_out.setdefault("images without a prompt in a .txt next to them", []).append(place.as_posix())
    return found, left_out


def reference_quality(
    handle: ModelHandle,
    data: ReferenceSet,
    network: FeatureNetwork,
    draw: Callable[[ModelHandle, list[str], int], GeneratedImages],
    features: FeaturesConfig,
    *,
    max_bad: float,
    seed: int = 0,
) -> Measurement:
    """reference_quality/NAME, and /NAME/CATEGORY, with the names of image_quality. draw(handle, prompts, first seed).
    For one process.

    Raises UserError with counts and names where more real images cannot be read than max_bad allows, before anything
    is drawn.
    """
    data, real, content = real_features(handle, data, network, features, max_bad)
    generated, last = generated_features(handle, [p.prompt for p in data.images], network, draw, seed)
    categories = [p.category for p in data.images]
    values, warnings = distances(FeatureSums.of(generated), generated, real, Gaussian.of(real), seed)
    values |= category_distances(generated, real, categories, categories, seed)
    if features.kind == "inception":
        values = {published_name(key): value for key, value in values.items()}
    small = [
        f"{name} ({n})" for name, n in Counter(c for c in categories if c is not None).items() if n < real.shape[1] + 1
    ]
    if small:
        warnings.append(
            f"fewer than {real.shape[1] + 1} images in {named(small)}: their Frechet distances are too high; read "
            "the kernel distances"
        )
    warnings += [f"left out: {reason}: {named(names)}" for reason, names in data.left_out.items()]
    prompts = [p.prompt for p in data.images]
    provenance = Provenance(
        n=len(generated),
        data=content,
        prompts=texts_digest([*prompts, handle.suffix]),
        seeds=seeds_text(range(seed, seed + len(prompts))),
        sampler=dict(last.sampler),
        resize=network.resize,
        features=network.name,
        feature_weights=network.weights,
        dtype=handle.dtype,
    )
    about = f"{len(real)} images of {data.folder.name}"
    return Measurement(
        {f"reference_quality/{key}": value for key, value in values.items()}, provenance, {"reference": about}, warnings
    )


def real_features(
    handle: ModelHandle, data: ReferenceSet, network: FeatureNetwork, config: FeaturesConfig, max_bad: float
) -> tuple[ReferenceSet, np.ndarray, str]:
    """(the images that can be read, their features fp32 [n, d], digest of all files)."""
    from evals.distances.feature_cache import file_features
    from liquid_train.generate.images import load_image

    height, width = (side * handle.image_tokenizer.downsampling for side in handle.grid)
    own_size = config.kind == "vq"
    features, content = file_features(
        network,
        [p.path for p in data.images],
        (lambda path: load_image(path, [(width, height)])) if own_size else read_rgb,
        f"scaled and cut to {width}x{height}" if own_size else "as they are",
        Path(config.cache) if config.cache is not None else None,
        lambda done: handle.progress("real images", done, len(data.images)),
    )
    good = ~np.isnan(features).all(axis=1)
    broken = [
        p.path.relative_to(data.folder).as_posix() for p, is_good in zip(data.images, good, strict=True) if not is_good
    ]
    left_out = {**data.left_out, **({"images that cannot be read": broken} if broken else {})}
    left = [p for p, is_good in zip(data.images, good, strict=True) if is_good]
    check_left_out(data.folder, left, left_out, max_bad)
    return ReferenceSet(data.folder, left, left_out), features[good], content


def generated_features(
    handle: ModelHandle,
    prompts: list[str],
    network: FeatureNetwork,
    draw: Callable[[ModelHandle, list[str], int], GeneratedImages],
    seed: int,
) -> tuple[np.ndarray, GeneratedImages]:
    """(fp32 [n, d] of one image a prompt, the last of the drawn parts)."""
    parts = []
    for start in range(0, len(prompts), DRAWN_TOGETHER):
        quiet = replace(handle, progress=later(handle, start, len(prompts)))
        generated = draw(quiet, prompts[start : start + DRAWN_TOGETHER], seed + start)
        parts.append(network(generated.pixels))
    return np.concatenate(parts), generated


def later(handle: ModelHandle, start: int, total: int) -> Progress:
    """Progress of a part that begins at `start`, as that of the whole."""
    return lambda what, done, _: handle.progress("images of the prompts", start + done, total)
