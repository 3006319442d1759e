"""Mirrored and shifted copies of an image, made before it is tokenized.

Pixels are uint8 [height, width, 3] throughout.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from liquid_train.data.keyed import keyed_generator
from liquid_train.image_tokenizer.preprocess import read_rgb

MAX_SHIFT = 8  # pixels


def read_varied(path: Path, seed: int, key: str, copy: int) -> np.ndarray:
    """The image, mirrored by a coin and shifted: a function of (seed, key, copy) and the file alone."""
    generator = keyed_generator(seed, key, copy)
    pixels = read_rgb(path)
    if generator.random() < 0.5:
        pixels = pixels[:, ::-1]
    steps = []
    for before, after in shift_room(pixels):
        steps.append(int(generator.integers(-min(before, MAX_SHIFT), min(after, MAX_SHIFT) + 1)))
    return np.ascontiguousarray(shift(pixels, *steps))


def shift(pixels: np.ndarray, down: int, right: int) -> np.ndarray:
    """Move the content by at most MAX_SHIFT pixels; what comes in at a border repeats the border's colours."""
    height, width = pixels.shape[:2]
    padded = np.pad(pixels, ((MAX_SHIFT, MAX_SHIFT), (MAX_SHIFT, MAX_SHIFT), (0, 0)), mode="edge")
    top, left = MAX_SHIFT - down, MAX_SHIFT - right
    return padded[top : top + height, left : left + width]


def shift_room(pixels: np.ndarray) -> list[tuple[int, int]]:
    """[(up, down), (left, right)]: by how many pixels the content may move and stay inside the image.

    The background is the corners' colour. There is no room along an axis where the content touches a border (repeating
    that border would stretch it), and none at all where the corners differ, for then the background is not known.
    """
    corners = pixels[[0, 0, -1, -1], [0, -1, 0, -1]]
    foreground = (pixels != corners[0]).any(axis=2)
    if (corners != corners[0]).any() or not foreground.any():
        return [(0, 0), (0, 0)]
    room = []
    for axis in (1, 0):  # rows, then columns
        filled = np.flatnonzero(foreground.any(axis=axis))
        before, after = int(filled[0]), int(foreground.shape[1 - axis] - 1 - filled[-1])
        room.append((before, after) if before and after else (0, 0))
    return room
