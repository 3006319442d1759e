"""A judge of generated images by plain geometry: the colour and the kind of the one shape on a plain background.

    image -> background (median colour) -> how far each pixel is from it, as a share of the shape's own contrast:
    coverage 0..1
            -> the largest connected part -> its colour: nearest palette entry
                                          -> its shape: which of three outlines, drawn into its bounding box, overlaps
                                          it most

It knows the images of easy-VQA (upright triangles, circles, upright rectangles) and nothing of the model that drew. A
image without one clear shape gets None. How often it is right on real images is measured and stored next to its
verdicts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

PALETTE = {
    "black": (0, 0, 0),
    "blue": (0, 0, 255),
    "brown": (165, 42, 42),
    "gray": (128, 128, 128),
    "green": (0, 255, 0),
    "red": (255, 0, 0),
    "teal": (0, 128, 128),
    "yellow": (255, 255, 0),
}
SHAPES = ("circle", "rectangle", "triangle")
MIN_CONTRAST = 60.0  # distance in RGB of shape and background; the palest real pair is above 100
MAX_COLOR_DISTANCE = 90.0  # in RGB, from the nearest palette entry
MIN_PIXELS = 12  # the smallest real triangle covers 20
MIN_SHARE = 0.85  # of everything that stands out must belong to one connected part
MIN_OVERLAP = 0.7  # with the best of the outlines
SAMPLES = 4  # sub-pixels along each side of a pixel


@dataclass(frozen=True)
class Verdict:
    """color and shape are None where nothing clear is there. overlap: intersection over union with the named
    outline."""

    color: str | None
    shape: str | None
    overlap: float = 0.0


NOTHING = Verdict(None, None)


def judge(image: np.ndarray) -> Verdict:
    """image uint8 [H, W, 3] -> what is drawn on it."""
    pixels = image.astype(np.float64)
    background = np.median(pixels.reshape(-1, 3), axis=0)
    distance = np.linalg.norm(pixels - background, axis=2)
    contrast = float(np.sort(distance, axis=None)[-MIN_PIXELS:].mean())
    if contrast < MIN_CONTRAST:
        return NOTHING
    part = largest_part(distance > contrast / 2)
    if part is None:
        return NOTHING
    inside = part & (distance > 0.8 * distance[part].max())
    color = nearest_color(np.median(pixels[inside], axis=0))
    if color is None:
        return NOTHING
    coverage = np.where(ndimage.binary_dilation(part), np.clip(distance / np.median(distance[inside]), 0, 1), 0.0)
    shape, overlap = nearest_shape(part, coverage)
    return Verdict(color, shape, overlap)


def largest_part(mask: np.ndarray) -> np.ndarray | None:
    """The connected part [H, W] that holds nearly all of the mask, or None when there is none."""
    labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
    if count == 0:
        return None
    sizes = np.bincount(labels.ravel())[1:]
    if sizes.max() < MIN_PIXELS or sizes.max() < MIN_SHARE * sizes.sum():
        return None
    return labels == 1 + int(sizes.argmax())


def nearest_color(color: np.ndarray) -> str | None:
    distances = {name: float(np.linalg.norm(color - np.array(rgb))) for name, rgb in PALETTE.items()}
    name = min(distances, key=distances.__getitem__)
    return name if distances[name] <= MAX_COLOR_DISTANCE else None


def nearest_shape(part: np.ndarray, coverage: np.ndarray) -> tuple[str | None, float]:
    """The outline that overlaps the coverage [H, W] most, and by how much; None below MIN_OVERLAP."""
    rows, columns = np.flatnonzero(coverage.any(axis=1)), np.flatnonzero(coverage.any(axis=0))
    window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    # so that outlines are drawn where they can be, not everywhere
    part, coverage = (np.pad(a[window], 2) for a in (part, coverage))
    overlaps = {
        shape: max(overlap(coverage, outline(shape, box, coverage.shape)) for box in boxes(part, shape))
        for shape in SHAPES
    }
    shape = max(overlaps, key=overlaps.__getitem__)
    return (shape if overlaps[shape] >= MIN_OVERLAP else None), overlaps[shape]


def boxes(part: np.ndarray, shape: str) -> list[tuple[float, float, float, float]]:
    """Candidate (top, left, bottom, right) in pixels: the part's bounding box, and a little larger ones (half-covered
    borders).

    A triangle's may be higher by up to a pixel: its tip is too thin to reach half the contrast.
    """
    rows, columns = np.flatnonzero(part.any(axis=1)), np.flatnonzero(part.any(axis=0))
    top, left, bottom, right = float(rows[0]), float(columns[0]), float(rows[-1] + 1), float(columns[-1] + 1)
    higher = (0.0, 0.5, 1.0) if shape == "triangle" else (0.0,)
    return [(top - wide - up, left - wide, bottom + wide, right + wide) for wide in (0.0, 0.25, 0.5) for up in higher]


def outline(shape: str, box: tuple[float, float, float, float], size: tuple[int, ...]) -> np.ndarray:
    """The ideal shape in a box, drawn smoothly: share of each pixel that it covers, [H, W]."""
    top, left, bottom, right = box
    y = ((np.arange(size[0] * SAMPLES) + 0.5) / SAMPLES)[:, None]
    x = ((np.arange(size[1] * SAMPLES) + 0.5) / SAMPLES)[None, :]
    middle_y, middle_x = (top + bottom) / 2, (left + right) / 2
    if shape == "circle":  # not an ellipse: a long blob is no circle
        inside = (y - middle_y) ** 2 + (x - middle_x) ** 2 <= ((bottom - top + right - left) / 4) ** 2
    elif shape == "rectangle":
        inside = (y >= top) & (y < bottom) & (x >= left) & (x < right)
    else:
        inside = (y < bottom) & (np.abs(x - middle_x) <= (right - left) / 2 * (y - top) / (bottom - top))
    return inside.reshape(size[0], SAMPLES, size[1], SAMPLES).mean(axis=(1, 3))


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two coverages."""
    return float(np.minimum(a, b).sum() / max(np.maximum(a, b).sum(), 1e-9))
