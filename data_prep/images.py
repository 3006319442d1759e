"""Reading a picture of any kind into RGB as a viewer shows it: uint8 [height, width, 3].

EXIF orientation is applied, transparency lies on white, 16-bit values are scaled down to 8, an animation gives its first frame, and
a picture that would fill the memory is refused by its header.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# What Pillow's decoders raise for a file they cannot read.
READ_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, MemoryError, Image.DecompressionBombError,
               Image.DecompressionBombWarning)  # fmt: skip
SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")


class UnusableImage(ValueError):
    """A picture that can be read and still not be used; the message is the reason under which it is counted."""


def read_rgb(file: Path | bytes) -> np.ndarray:
    """A picture file, or its content, as RGB; one of READ_ERRORS when it is missing, broken or too large to decode safely."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)  # Pillow only warns from 89 million pixels on
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            return to_rgb(ImageOps.exif_transpose(image))


def to_rgb(image: Image.Image) -> np.ndarray:
    """Pixels of any mode as uint8 [height, width, 3]; UnusableImage for a mode whose range of values is unknown."""
    if image.mode in SIXTEEN_BIT:
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise UnusableImage("values beyond 16 bits")
        grey = ((values + 128) // 257).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode == "F":
        raise UnusableImage("floating-point picture")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        return on_white(np.asarray(image.convert("RGBA")))
    return np.asarray(image.convert("RGB"))


def on_white(rgba: np.ndarray) -> np.ndarray:
    """uint8 [height, width, 4] over a white background, rounded down as the published Chameleon tokenizer does."""
    alpha = rgba[:, :, 3:] / 255.0
    return ((1 - alpha) * 255 + alpha * rgba[:, :, :3]).astype(np.uint8)


def reason(error: Exception) -> str:
    """Under which name an unreadable picture is counted."""
    if isinstance(error, UnusableImage):
        return str(error)
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError)):
        return "too many pixels"
    if isinstance(error, FileNotFoundError):
        return "missing image"
    return "not an image" if isinstance(error, UnidentifiedImageError) else "broken image"
