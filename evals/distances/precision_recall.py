"""Precision and recall of images (Kynkaanniemi et al. 2019): how many generated ones look real, how many real ones
could be generated.

A set covers what lies within its images' spheres, each as wide as the distance to the image's k-th nearest
neighbour in its set.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import cdist

from liquid_train.errors import UserError

NEIGHBOURS = 3
CHUNK = 1024  # images whose distances to a whole set exist at the same time


def radii(features: np.ndarray, neighbours: int) -> np.ndarray:
    """features [n, d] -> [n]: distance of each to its k-th nearest other."""
    parts = [
        np.partition(cdist(features[i : i + CHUNK], features), neighbours, axis=1)[:, neighbours]
        for i in range(0, len(features), CHUNK)
    ]
    return np.concatenate(parts)  # the nearest is the image itself


def covered(points: np.ndarray, features: np.ndarray, neighbours: int = NEIGHBOURS) -> np.ndarray:
    """points [m, d], features [n, d] -> bool [m]: which lie within a sphere of the set. Raises UserError unless n >
    neighbours."""
    if len(features) <= neighbours:
        raise UserError(
            f"precision and recall with {neighbours} neighbours need more than {neighbours} images in each set, "
            f"not {len(features)}"
        )
    features, points = features.astype(np.float64), points.astype(np.float64)
    reach = radii(features, neighbours)
    return np.concatenate(
        [(cdist(points[i : i + CHUNK], features) <= reach).any(axis=1) for i in range(0, len(points), CHUNK)]
    )


def precision_recall(
    generated: np.ndarray, real: np.ndarray, neighbours: int = NEIGHBOURS
) -> tuple[np.ndarray, np.ndarray]:
    """(bool [generated]: covered by the real ones, bool [real]: covered by the generated ones); their means are
    precision and recall."""
    return covered(generated, real, neighbours), covered(real, generated, neighbours)
