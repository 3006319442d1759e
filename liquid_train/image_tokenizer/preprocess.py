"""Reads an image file of any format into RGB as a viewer shows it: uint8 [height, width, 3].

EXIF orientation is applied, transparency is laid over white, 16-bit values are scaled down to 8, an animation gives its
first frame, and an image that would fill the memory is refused by its header.
"""

from __future__ import annotations

import io
import math
import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError


class UnusableImage(ValueError):
    """An image that can be read and still not be used; the message is the reason under which it is counted."""


# What says that an image is at fault. Pillow's decoders also raise a ValueError or RuntimeError, as a bug does:
# open_image makes those UnusableImage, so that a bug of a source of one's own is not taken for a broken image.
READ_ERRORS = (
    UnusableImage,
    OSError,
    SyntaxError,
    EOFError,
    struct.error,
    zlib.error,
    MemoryError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
# Not those that start another program (EPS: Ghostscript), or that hold no raster image.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM", "TGA", "ICO", "QOI")
SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")
ORIENTATION = 0x0112  # the EXIF tag that gives the rotation of the stored image
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
MAX_SCALED_PIXELS = 2**26
STRIP = 2**20  # pixels laid on white at once: in float64 they take 30 times the bytes


@cache
def formats() -> tuple[str, ...]:
    """Those of FORMATS that this Pillow was built with."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@cache
def image_suffixes() -> frozenset[str]:
    """Suffixes of the files that `read_rgb` takes, in lower case and with the dot, as this Pillow registers them."""
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in formats())


@contextmanager
def open_image(file: Path | bytes) -> Iterator[Image.Image]:
    """An image file, or its content, opened by Pillow: what the block raises while it reads is one of READ_ERRORS."""
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=formats()) as image:
            yield image
    except (ValueError, RuntimeError) as error:
        if isinstance(error, READ_ERRORS):
            raise
        raise UnusableImage("broken image") from error


def read_rgb(file: Path | bytes) -> np.ndarray:
    """An image file, or its content, as RGB; one of READ_ERRORS when it is missing, broken or too large to decode
    safely."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about oddities that do no harm, a line for every such image
        warnings.simplefilter("error", Image.DecompressionBombWarning)  # Pillow only warns from 89 million pixels on
        with open_image(file) as image:
            image.load()  # first, because errors in what orientation() reads are of no account
            turn = TURNS.get(orientation(image))
            return to_rgb(image.transpose(turn) if turn is not None else image)


def orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 (unchanged) without one or with damaged EXIF, as viewers do."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except (*READ_ERRORS, ValueError, RuntimeError):
        return 1
    return value if isinstance(value, int) else 1


def to_rgb(image: Image.Image) -> np.ndarray:
    """Pixels of any mode as uint8 [height, width, 3]; UnusableImage for a mode whose range of values is unknown."""
    if image.mode in SIXTEEN_BIT:
        values = np.asarray(image).astype(np.int32)
        if values.min() < 0 or values.max() > 65535:
            raise UnusableImage("values beyond 16 bits")
        grey = ((values + 128) // 257).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode == "F":
        raise UnusableImage("floating-point image")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        return on_white(np.asarray(image.convert("RGBA")))
    return np.asarray(image.convert("RGB"))


def on_white(rgba: np.ndarray) -> np.ndarray:
    """uint8 [height, width, 4] over a white background, rounded down as the published Chameleon tokenizer does."""
    rgb = np.empty((*rgba.shape[:2], 3), np.uint8)
    rows = max(1, STRIP // rgba.shape[1])
    for top in range(0, len(rgba), rows):
        strip = rgba[top : top + rows]
        alpha = strip[:, :, 3:] / 255.0
        rgb[top : top + rows] = (1 - alpha) * 255 + alpha * strip[:, :, :3]
    return rgb


def nearest_size(sizes: Iterable[tuple[int, int]], width: int, height: int) -> tuple[int, int]:
    """That of `sizes` (width, height) whose aspect ratio is nearest, measured by its logarithm; the first one on a
    tie."""
    return min(sizes, key=lambda s: abs(math.log(s[0] * height / (s[1] * width))))


def cover(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scale by Lanczos until `size` (width, height) is just covered, then cut out the centre.

    Raises UnusableImage for an image so long that it would fill the memory once its short side is scaled up.
    """
    image = Image.fromarray(pixels)
    scale = max(size[0] / image.width, size[1] / image.height)
    scaled = max(size[0], round(scale * image.width)), max(size[1], round(scale * image.height))
    if scaled[0] * scaled[1] > MAX_SCALED_PIXELS:
        raise UnusableImage("too many pixels once scaled")
    image = image.resize(scaled, Image.Resampling.LANCZOS)
    left, top = (image.width - size[0]) // 2, (image.height - size[1]) // 2
    return np.asarray(image.crop((left, top, left + size[0], top + size[1])))


def reason(error: Exception) -> str:
    """Under which name an unreadable image is counted."""
    if isinstance(error, UnusableImage):
        return str(error)
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError)):
        return "too many pixels"
    if isinstance(error, (FileNotFoundError, NotADirectoryError, IsADirectoryError)):
        return "missing image"
    # the system's word, not Pillow's: no permission, a disk or network that fails
    if isinstance(error, OSError) and error.strerror:
        return f"unreadable image: {error.strerror}"
    return "not an image" if isinstance(error, UnidentifiedImageError) else "broken image"
