"""What the near-duplicate hash of images finds: python -m benchmarks.near_duplicates FOLDER [IMAGES]

Of the images below a folder (1,000 drawn at random, three seeds) each gets altered copies. Printed are the share of
copies that `liquid data filter --near-duplicates` takes for alike to their original, and the share of images that have
another, unaltered image alike to them, with mean and standard deviation over the seeds. The last line is the time of a
hash next to that of decoding the image's file.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.encode.perceptual_hash import image_hash, parse_image_hash
from data_prep.tools.limits import Limits
from data_prep.tools.near_duplicates import Hashes, ImageLikeness
from liquid_train.image_tokenizer.preprocess import READ_ERRORS, read_rgb

SEEDS, SUFFIXES = 3, (".png", ".jpg", ".jpeg", ".webp")
LIMITS = (Limits(image_distance=6, color_distance=16), Limits(), Limits(color_distance=255))
Alteration = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def resized(pixels: np.ndarray, factor: float) -> np.ndarray:
    image = Image.fromarray(pixels)
    size = max(8, round(image.width * factor)), max(8, round(image.height * factor))
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC))


def cropped(pixels: np.ndarray, share: float, generator: np.random.Generator) -> np.ndarray:
    """Without `share` of each side's length, at a random place."""
    height, width = pixels.shape[:2]
    cut = max(1, round(height * share)), max(1, round(width * share))
    top, left = generator.integers(0, cut[0] + 1), generator.integers(0, cut[1] + 1)
    return pixels[top : height - cut[0] + top, left : width - cut[1] + left]


ALTERATIONS: dict[str, Alteration] = {
    "resized 0.5": lambda pixels, _: resized(pixels, 0.5),
    "resized 0.3": lambda pixels, _: resized(pixels, 0.3),
    "resized 1.7": lambda pixels, _: resized(pixels, 1.7),
    "JPEG 70": lambda pixels, _: jpeg(pixels, 70),
    "JPEG 30": lambda pixels, _: jpeg(pixels, 30),
    "cropped by 2%": lambda pixels, generator: cropped(pixels, 0.02, generator),
    "cropped by 5%": lambda pixels, generator: cropped(pixels, 0.05, generator),
    "2%, resized 0.6, JPEG 50": lambda pixels, generator: jpeg(resized(cropped(pixels, 0.02, generator), 0.6), 50),
}


def hashed(images: list[np.ndarray]) -> Hashes:
    hashes = Hashes(len(images))
    for number, pixels in enumerate(images):
        hashes.set_image(number, *parse_image_hash(image_hash(pixels)))
    return hashes


def look_alikes(likeness: ImageLikeness, hashes: Hashes) -> float:
    """Share of the images that another one is alike to."""
    everyone = np.arange(len(hashes.bits))
    found = [likeness.alike(hashes, np.full(len(everyone), n), hashes, everyone).sum() > 1 for n in everyone]
    return float(np.mean(found))


def measure(files: list[Path], count: int, seed: int) -> dict[str, list[float]]:
    """Name -> a share for each of LIMITS."""
    generator, images = np.random.default_rng(seed), list[np.ndarray]()
    for place in generator.permutation(len(files)):
        try:
            images.append(read_rgb(files[place]))
        except READ_ERRORS:
            continue
        if len(images) == count:
            break
    likenesses = [ImageLikeness(limits.image_distance, limits.color_distance) for limits in LIMITS]
    originals, everyone = hashed(images), np.arange(len(images))
    shares = {}
    for name, alter in ALTERATIONS.items():
        copies = hashed([alter(pixels, generator) for pixels in images])
        shares[name] = [float(one.alike(originals, everyone, copies, everyone).mean()) for one in likenesses]
    return {**shares, "look-alikes": [look_alikes(one, originals) for one in likenesses]}


def cost(files: list[Path]) -> str:
    decoding = hashing = 0.0
    for file in files[:50]:
        start = time.process_time()
        pixels = read_rgb(file)
        decoded = time.process_time()
        image_hash(pixels)
        decoding, hashing = decoding + decoded - start, hashing + time.process_time() - decoded
    to_ms = 1e3 / len(files[:50])
    return f"{to_ms * hashing:.2f} ms to hash an image, {to_ms * decoding:.2f} to decode it"


def main() -> None:
    folder, count = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1000
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    runs = [measure(files, count, seed) for seed in range(SEEDS)]
    heads = [f"{limits.image_distance} bits, {limits.color_distance} levels" for limits in LIMITS]
    print(f"{'':26}", *(f"{head:>22}" for head in heads))
    for name in runs[0]:
        shares = np.array([run[name] for run in runs])
        cells = [f"{mean:.3f} ± {deviation:.3f}" for mean, deviation in zip(shares.mean(0), shares.std(0), strict=True)]
        print(f"{name:26}", *(f"{cell:>22}" for cell in cells))
    print(cost(files))


if __name__ == "__main__":
    main()
