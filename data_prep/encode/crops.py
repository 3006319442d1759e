"""From an image as it is to the size that the VQ gets (`tokenize.crop`).

none         as it is; both sides must be multiples of the downsampling
center       the shorter side to `size` by Lanczos, then the centre square: what the published Chameleon tokenizer does
multiratio   the size of a list whose aspect ratio is nearest: resized to cover it by Lanczos, then the centre
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from data_prep.encode.perceptual_hash import image_hash
from liquid_train.errors import UserError
from liquid_train.image_tokenizer.preprocess import UnusableImage, cover, nearest_size

AREA_TOLERANCE = 0.2  # of size^2, by which a size of the list may differ
STEPS = 8  # a default list's sides are multiples of about size / STEPS
TOO_LONG = "aspect ratio above"  # begins the reason of an image left out by tokenize.max_aspect

Size = tuple[int, int]  # width, height


@dataclass(frozen=True)
class Crop:
    """size: the square's side, or the root of the list's area, in pixels. sizes: (width, height) of multiratio's
    list."""

    kind: str
    downsampling: int
    size: int
    sizes: tuple[Size, ...] = ()
    max_aspect: float | None = 2.0
    hashes: bool = False  # KEY.json gets the hash of the image as it was before

    def recipe(self) -> dict[str, Any]:
        """What determines the pixels, as JSON."""
        if self.kind == "none":
            return {"kind": "none", "max_aspect": self.max_aspect}
        sizes = {"sizes": [list(s) for s in self.sizes]} if self.kind == "multiratio" else {}
        return {"kind": self.kind, "max_aspect": self.max_aspect, "size": self.size, **sizes}

    def __call__(self, pixels: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        """pixels uint8 [h, w, 3] -> the VQ's input, and what KEY.json records of the image. Raises UnusableImage."""
        cropped, info = self._cropped(pixels)
        return cropped, {**info, "image_hash": image_hash(pixels)} if self.hashes else info

    def _cropped(self, pixels: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        height, width = pixels.shape[:2]
        if self.max_aspect is not None and max(width, height) > self.max_aspect * min(width, height):
            raise UnusableImage(f"{TOO_LONG} {self.max_aspect:g}")
        if self.kind == "none":
            if height % self.downsampling or width % self.downsampling:
                raise UnusableImage(f"sides not multiples of {self.downsampling}")
            return pixels, {}
        original = {"original_width": width, "original_height": height}
        if self.kind == "center":
            return cover(pixels, (self.size, self.size)), original
        return cover(pixels, nearest_size(self.sizes, width, height)), {**original, "multiratio": True}


def default_sizes(size: int, downsampling: int, max_aspect: float | None) -> tuple[Size, ...]:
    """Sizes of about size^2 pixels from wide to tall: for 512 and 16 these are 704x384, 576x448, 512x512, 448x576,
    384x704."""
    step = max(downsampling, size // STEPS // downsampling * downsampling)
    sizes = {(size, size)}
    for short in range(step, size + 1, step):
        long = round(size * size / short / step) * step
        near = abs(long * short / size**2 - 1) <= AREA_TOLERANCE
        if near and long <= (max_aspect or 2.0) * short:
            sizes |= {(long, short), (short, long)}
    return tuple(sorted(sizes, key=lambda s: s[1] / s[0]))


def parse_size(text: str) -> Size:
    """ "704x384" -> (704, 384). Raises UserError."""
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise UserError(f"tokenize.sizes: {text}: a size is WIDTHxHEIGHT in pixels, for example 704x384")
    return int(width), int(height)


def make_crop(
    kind: str,
    size: int | None,
    sizes: list[str] | None,
    max_aspect: float | None,
    *,
    downsampling: int,
    resolution: int,
) -> Crop:
    """The crop that tokenize.crop and its companions ask for; `resolution` is the VQ's own, the default size.

    Raises UserError for sizes that the VQ cannot take or that are far from size^2 in area.
    """
    side = size or resolution
    if kind != "none" and side % downsampling:
        raise UserError(f"tokenize.size={side}: must be a multiple of {downsampling}, the VQ's downsampling")
    if kind != "multiratio":
        return Crop(kind, downsampling, side, (), max_aspect)
    chosen = tuple(map(parse_size, sizes)) if sizes else default_sizes(side, downsampling, max_aspect)
    for width, height in chosen:
        if width % downsampling or height % downsampling:
            raise UserError(
                f"tokenize.sizes: {width}x{height}: both sides must be multiples of {downsampling}, the VQ's "
                "downsampling"
            )
        if abs(width * height / side**2 - 1) > AREA_TOLERANCE:
            raise UserError(
                f"tokenize.sizes: {width}x{height} has {width * height:,} pixels, tokenize.size={side} asks for "
                f"about {side**2:,}: "
                f"keep within {AREA_TOLERANCE:.0%}, or change tokenize.size"
            )
    return Crop(kind, downsampling, side, chosen, max_aspect)
