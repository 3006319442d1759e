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
from liquid_train.measurement.measurement import ModelHandle
from liquid_train.measurement.provenance import arrays_digest, texts_digest

LAST: dict[str, np.ndarray] = {}  # at most one


def reference_features(
    handle: ModelHandle, network: FeatureNetwork, pixels: np.ndarray, folder: Path | None
) -> np.ndarray:
    """pixels uint8 [N, H, W, 3] -> fp32 [N, d]; a damaged or foreign file is computed again. folder None: nothing is
    read or written. A collective: each rank computes its own rows, rank 0 reads and writes the file.

    The last set stays in memory: an evaluation while training asks for the same one every time.
    """
    key = texts_digest([arrays_digest(pixels), network.name, network.weights, network.resize])
    if key not in LAST:  # on all ranks or on none
        path = folder / f"{key}.npy" if folder is not None and handle.rank == 0 else None
        kept = read_features(path, len(pixels)) if path is not None else None
        width = int(handle.gathered(np.array([0 if kept is None else kept.shape[1]]))[0])
        LAST.clear()
        if width:
            LAST[key] = handle.gathered(np.zeros((len(pixels), width), np.float32) if kept is None else kept)
        else:
            LAST[key] = shared_features(handle, network, pixels)
            if path is not None:
                write_features(path, LAST[key])
    return LAST[key]


def shared_features(handle: ModelHandle, network: FeatureNetwork, pixels: np.ndarray) -> np.ndarray:
    """pixels uint8 [N, H, W, 3], N >= 1 -> fp32 [N, d] of all, each rank having computed its own; a collective."""
    own = handle.own(len(pixels))
    part = network(pixels[own] if own else pixels[:1])  # a rank without any must know the width
    features = np.zeros((len(pixels), part.shape[1]), dtype=np.float32)
    if own:
        features[own] = part
    return handle.gathered(features)


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

    if key not in LAST:
        path = folder / f"{key}.npy" if folder is not None else None
        kept = read_features(path, len(files)) if path is not None else None
        LAST.clear()
        LAST[key] = compute() if kept is None else kept
        if path is not None and kept is None:
            write_features(path, LAST[key])
    return LAST[key], content


def read_features(path: Path, count: int) -> np.ndarray | None:
    """What a file holds of `count` images; None where it is missing, damaged or of something else."""
    try:
        kept = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    good = kept.dtype == np.float32 and kept.ndim == 2 and len(kept) == count
    return kept if good and (np.isfinite(kept).all(1) | np.isnan(kept).all(1)).all() else None


def write_features(path: Path, features: np.ndarray) -> None:
    with dispensable(f"features.cache: {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            np.save(file, features, allow_pickle=False)
        partial.replace(path)
