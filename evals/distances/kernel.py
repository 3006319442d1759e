"""Kernel distance of two sets of images through features of any network. With Inception's features it is KID.

Squared maximum mean discrepancy with the kernel (x.y / d + 1)^3, in its unbiased form (Binkowski et al. 2018): right on
average from two images on, and sometimes below zero for sets that are alike.
"""

from __future__ import annotations

import numpy as np

from evals.errors import NotMeasurable

SUBSETS = 100
SUBSET_SIZE = 1000


def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a [n, d], b [m, d] -> [n, m], fp64."""
    return (a.astype(np.float64) @ b.T.astype(np.float64) / a.shape[1] + 1) ** 3


def squared_mmd(a: np.ndarray, b: np.ndarray) -> float:
    """Unbiased estimate from all pairs. a [n, d], b [m, d]; n and m at least 2."""
    n, m = len(a), len(b)
    within_a, within_b = kernel(a, a), kernel(b, b)
    return float(
        (within_a.sum() - np.trace(within_a)) / (n * (n - 1))
        + (within_b.sum() - np.trace(within_b)) / (m * (m - 1))
        - 2 * kernel(a, b).mean()
    )


def kernel_distance(
    a: np.ndarray, b: np.ndarray, seed: int, subsets: int = SUBSETS, subset_size: int = SUBSET_SIZE
) -> tuple[float, float, int]:
    """(mean, standard deviation, images of a subset) over random subsets of both sets, as KID is published.

    Subsets hold subset_size images, or half of the smaller set where it has fewer than twice that: equal subsets
    would have no deviation. Raises NotMeasurable for a set below 4 images.
    """
    smaller = min(len(a), len(b))
    if smaller < 4:
        raise NotMeasurable(f"a kernel distance needs at least 4 images in each set, not {smaller}")
    size, random = min(subset_size, smaller // 2), np.random.default_rng(seed)
    values = [squared_mmd(*(x[random.choice(len(x), size, replace=False)] for x in (a, b))) for _ in range(subsets)]
    return float(np.mean(values)), float(np.std(values)), size
