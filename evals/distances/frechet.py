"""Frechet distance of two sets of images through features of any network. With Inception's features it is FID.

    features [n, d] -> FeatureSums (fp64, of any part of a set, on any rank; parts add up) -> Gaussian ->
    frechet_distance

Each set is taken for a Gaussian of its features; the distance is |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) (Dowson
and Landau 1982). The trace of the root is computed from symmetric eigenvalues, so that it stays real where a covariance
has no full rank (fewer images than features), which the root of the plain product does not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evals.errors import NotMeasurable

FLOOR_DRAWS = 4
INFINITY_POINTS = 10  # numbers of images from which the distance at infinitely many is fitted


@dataclass(frozen=True)
class Gaussian:
    """mean [d], covariance [d, d], fp64."""

    mean: np.ndarray
    covariance: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> Gaussian:
        """features [n, d], n >= 2; the covariance divides by n - 1."""
        features = np.asarray(features, dtype=np.float64)
        if len(features) < 2:
            raise NotMeasurable(f"a Frechet distance needs at least 2 images in each set, not {len(features)}")
        return cls(features.mean(0), np.atleast_2d(np.cov(features, rowvar=False)))


@dataclass(frozen=True)
class FeatureSums:
    """count n; total [d] and products [d, d]: sums of the features and of their outer products, fp64. They can be
    stored and added (over ranks with one all_reduce, over an interruption), and give the whole set's Gaussian to
    rounding."""

    count: int
    total: np.ndarray
    products: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> FeatureSums:
        """features [n, d]; n may be 0."""
        features = np.asarray(features, dtype=np.float64)
        return cls(len(features), features.sum(0), features.T @ features)

    def __add__(self, other: FeatureSums) -> FeatureSums:
        return FeatureSums(self.count + other.count, self.total + other.total, self.products + other.products)

    def as_vector(self) -> np.ndarray:
        """All of it as one fp64 array [1 + d + d * d], so that ranks can add it in one call."""
        return np.concatenate([[float(self.count)], self.total, self.products.ravel()])

    @classmethod
    def from_vector(cls, vector: np.ndarray) -> FeatureSums:
        width = int(round((-1 + np.sqrt(4 * len(vector) - 3)) / 2))  # of 1 + d + d * d
        return cls(int(vector[0]), vector[1 : 1 + width], vector[1 + width :].reshape(width, width))

    def gaussian(self) -> Gaussian:
        """Raises NotMeasurable for fewer than 2 images."""
        if self.count < 2:
            raise NotMeasurable(f"a Frechet distance needs at least 2 images in each set, not {self.count}")
        mean = self.total / self.count
        return Gaussian(mean, (self.products - self.count * np.outer(mean, mean)) / (self.count - 1))


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """Zero for equal Gaussians, never negative but for rounding, which is cut off."""
    values, vectors = np.linalg.eigh(a.covariance)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    product = root @ b.covariance @ root  # has the eigenvalues of C1 C2, and is symmetric
    trace = np.sqrt(np.linalg.eigvalsh((product + product.T) / 2).clip(min=0)).sum()
    return float(max(((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance) + np.trace(b.covariance) - 2 * trace, 0.0))


def frechet_infinity(features: np.ndarray, reference: Gaussian, seed: int, smallest: int) -> float:
    """The distance at infinitely many images: the line through distances of random subsets over 1/n, at 0 (Chong and
    Forsyth 2020).

    features [n, d]. smallest: images of the smallest subset, at least 2 and below n. May come out a little below 0.
    """
    random = np.random.default_rng(seed)
    sizes = np.unique(np.linspace(smallest, len(features), INFINITY_POINTS).astype(int))
    distances = [
        frechet_distance(Gaussian.of(features[random.permutation(len(features))[:size]]), reference) for size in sizes
    ]
    return float(np.polyfit(1 / sizes, distances, 1)[1])


def frechet_floor(reference: np.ndarray, count: int, seed: int) -> float | None:
    """What `count` perfect images would get: the distance of that many real ones from the other real ones, mean of
    FLOOR_DRAWS.

    reference [n, d]. This is the bias of a small sample, measured. None where fewer real ones are left than are taken.
    """
    if count < 2 or len(reference) < 2 * count:
        return None
    random, found = np.random.default_rng(seed), []
    for _ in range(FLOOR_DRAWS):
        order = random.permutation(len(reference))
        found.append(frechet_distance(Gaussian.of(reference[order[:count]]), Gaussian.of(reference[order[count:]])))
    return float(np.mean(found))
