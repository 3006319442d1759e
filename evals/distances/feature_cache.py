"""Features of reference images, kept by content: the same images through the same network are computed once.

FOLDER/<sha256 of the images, the network's name, its weights and the resizing>.npy    fp32 [n, d], NaN where a
                                                                                         image cannot be read
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from evals.distances.features import FeatureNetwork
from liquid_train.files import dispensable, sha256_of
from liquid_train.image_tokenizer.preprocess import READ_ERRORS
from liquid_train.measurement.provenance import arrays_digest, texts_digest

LAST: dict[str, np.ndarray] = {}  # at most one


def reference_features(network: FeatureNetwork, pixels: np.ndarray, folder: Path | None) -> np.ndarray:
    """pixels uint8 [N, H, W, 3] -> fp32 [N, d]; a damaged or foreign file is computed again. folder None: nothing is
    written.

    The last set stays in memory: an evaluation while training asks for the same one every time.
    """
    key = texts_digest([arrays_digest(pixels), network.name, network.weights, network.resize])
    return remembered(key, len(pixels), folder, lambda: network(pixels))


def file_features(
    network: FeatureNetwork,
    files: Sequence[Path],
    load: Callable[[Path], np.ndarray],
    loaded: str,
    folder: Path | None,
    progress: Callable[[int], None],
) -> tuple[np.ndarray, str]:
    """(fp32 [N, d], digest of the files' content): as reference_features, of image files of any number, one in memory
    at a time.

    load: file -> uint8 [H, W, 3]; `loaded` says how, in words. A row is NaN where it raises one of READ_ERRORS.
    """
    content = texts_digest([sha256_of(file) for file in files])
    key = texts_digest([content, loaded, network.name, network.weights, network.resize])

    def compute() -> np.ndarray:
        rows: dict[int, np.ndarray] = {}
        for n, file in enumerate(files):
            try:
                rows[n] = network(load(file)[None])[0]
            except READ_ERRORS:
                continue
            finally:
                progress(n + 1)
        features = np.full((len(files), len(next(iter(rows.values()))) if rows else 1), np.nan, dtype=np.float32)
        for n, row in rows.items():
            features[n] = row
        return features

    return remembered(key, len(files), folder, compute), content


def remembered(key: str, count: int, folder: Path | None, compute: Callable[[], np.ndarray]) -> np.ndarray:
    if key not in LAST:
        LAST.clear()
        LAST[key] = compute() if folder is None else stored(folder / f"{key}.npy", count, compute)
    return LAST[key]


def stored(path: Path, count: int, compute: Callable[[], np.ndarray]) -> np.ndarray:
    try:
        kept = np.load(path, allow_pickle=False)
        if (
            kept.dtype == np.float32
            and kept.ndim == 2
            and len(kept) == count
            and (np.isfinite(kept).all(1) | np.isnan(kept).all(1)).all()
        ):
            return kept
    except (OSError, ValueError, EOFError):
        pass
    features = compute()
    with dispensable(f"features.cache: {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            np.save(file, features, allow_pickle=False)
        partial.replace(path)
    return features
