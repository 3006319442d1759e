"""A perceptual hash of an image: a resized, recompressed or slightly cropped copy has nearly the same one.

    pixels -+-> 32 x 32 grey -> cosine transform -> the 8 x 8 lowest frequencies -> which exceed the median: 64 bits
            +-> 3 x 3 RGB: 27 bytes

The bits are pHash as the imagehash package has it. That package is not used because it needs PyWavelets for its other
hashes and takes five times as long at 1,024 pixels. pHash sees no color: of 1,000 easy-VQA images 90% have a
look-alike by their bits, 21% by bits and colors (docs/data.md has the figures). What is hashed is the image of the
source, not what tokenize.crop makes of it: copies in two sets are found whatever crop and size these were made with.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

BITS = 64
COLORS = 3 * 3 * 3  # bytes: rows, columns, RGB
_SIDE = 32  # of the grey image
_LOW = 8  # lowest frequencies in each direction
# the lowest frequencies of a cosine transform of type II, [8, 32]: of all 32 an FFT would take ten times as long
_COSINES = np.cos(np.pi / _SIDE * np.outer(np.arange(_LOW), np.arange(_SIDE) + 0.5))
_SAMPLED, _REDUCED = 512, 64  # sides down to which pixels are skipped, and whole blocks averaged


def image_hash(pixels: np.ndarray) -> str:
    """pixels uint8 [h, w, 3] -> 16 hexadecimal digits for the bits and 54 for the colors."""
    # of a large image most is thrown away: every so many pixels will do, and blocks are averaged faster than by Lanczos
    image = Image.fromarray(pixels[:: max(1, len(pixels) // _SAMPLED), :: max(1, pixels.shape[1] // _SAMPLED)])
    image = image.reduce((max(1, image.width // _REDUCED), max(1, image.height // _REDUCED)))
    grey = np.asarray(image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS), np.float64)
    low = _COSINES @ grey @ _COSINES.T
    ordered = np.sort(low, axis=None)
    median = (ordered[BITS // 2 - 1] + ordered[BITS // 2]) / 2
    colors = image.resize((3, 3), Image.Resampling.BOX)
    return np.packbits(low > median).tobytes().hex() + colors.tobytes().hex()


def parse_image_hash(text: str) -> tuple[int, np.ndarray]:
    """(64 bits, colors uint8 [27]) of what `image_hash` gave. Raises ValueError for anything else."""
    content = bytes.fromhex(text)
    if len(content) != BITS // 8 + COLORS:
        raise ValueError(f"{len(content)} bytes in place of {BITS // 8 + COLORS}")
    return int.from_bytes(content[: BITS // 8], "big"), np.frombuffer(content[BITS // 8 :], np.uint8)
