"""95% confidence intervals of what is measured on n items that are drawn independently.

Questions about one image are not independent: their interval is narrower than it should be (docs/evaluation.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

Z = 1.959963984540054  # of the normal distribution: 2.5% lie above
WILSON = "Wilson 95%"


def wilson(right: int, n: int) -> tuple[float, float]:
    """Interval of a share (Wilson 1927): within 0..1, and wider than nothing also at 0 of n and at n of n. n >= 1."""
    share, z2 = right / n, Z * Z
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return 0.0 if right == 0 else middle - half, 1.0 if right == n else middle + half  # without rounding at the ends


def bootstrap(
    count: int, statistic: Callable[[np.ndarray], float], *, seed: int, resamples: int = 1000, reflected: bool = False
) -> tuple[float, float]:
    """Bootstrap interval of statistic(numbers of the items, int [count]): the middle 95% of what resampled items give.

    reflected: mirrored at the estimate (the basic bootstrap, Davison and Hinkley 1997, 2.4), for a statistic that
    repeated items push up, as they do a Frechet distance: its bias is taken off then, not put on twice.
    """
    random = np.random.default_rng(seed)
    low, high = np.quantile([statistic(random.integers(0, count, count)) for _ in range(resamples)], (0.025, 0.975))
    if not reflected:
        return float(low), float(high)
    estimate = statistic(np.arange(count))
    return float(2 * estimate - high), float(2 * estimate - low)


def bootstrap_name(resamples: int, seed: int, reflected: bool = False) -> str:
    return f"bootstrap 95%{', reflected' if reflected else ''}, {resamples} resamples, seed {seed}"


def mean_interval(values: Sequence[float] | np.ndarray, *, seed: int, resamples: int = 1000) -> tuple[float, float]:
    """Bootstrap interval of a mean."""
    array = np.asarray(values, dtype=np.float64)
    return bootstrap(len(array), lambda picked: float(array[picked].mean()), seed=seed, resamples=resamples)
