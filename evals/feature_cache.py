"""Features of reference pictures, kept by content: the same pictures through the same network are computed once.

FOLDER/<sha256 of the pictures, the network's name, its weights and the resizing>.npy    fp32 [n, d]
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from evals.features import FeatureNetwork
from evals.receipt import arrays_digest, texts_digest
from liquid_train.files import dispensable

LAST: dict[str, np.ndarray] = {}  # at most one


def reference_features(network: FeatureNetwork, pixels: np.ndarray, folder: Path | None) -> np.ndarray:
    """pixels uint8 [N, H, W, 3] -> fp32 [N, d]; a damaged or foreign file is computed again. folder None: nothing is written.

    The last set stays in memory: an evaluation while training asks for the same one every time.
    """
    key = texts_digest([arrays_digest(pixels), network.name, network.weights, network.resize])
    if key not in LAST:
        LAST.clear()
        LAST[key] = network(pixels) if folder is None else stored_features(network, pixels, folder / f"{key}.npy")
    return LAST[key]


def stored_features(network: FeatureNetwork, pixels: np.ndarray, path: Path) -> np.ndarray:
    try:
        kept = np.load(path, allow_pickle=False)
        if kept.dtype == np.float32 and kept.ndim == 2 and len(kept) == len(pixels) and np.isfinite(kept).all():
            return kept
    except (OSError, ValueError, EOFError):
        pass
    features = network(pixels)
    with dispensable(f"features.cache: {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            np.save(file, features, allow_pickle=False)
        partial.replace(path)
    return features
