"""A finished set read from its first byte to its last, a chunk at a time: memory does not grow with the set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from liquid_train.data.sample_table import SAMPLES_NAME, row_type
from liquid_train.data.shard_format import INDEX_NAME, group_files
from liquid_train.data.shard_index import read_index
from liquid_train.data.shards import BLOCK
from liquid_train.data.storage import open_folder
from liquid_train.errors import UserError

Files = dict[str, bytes]  # extension -> content of one sample


def open_index(path: Path) -> dict[str, Any]:
    """The index.json of a finished set, with `chunks` [[first sample, samples, byte offset], ...] of every tar: from
    samples.npy where index.json has none.

    Raises UserError where there is no index; none is made, for the parts of a set lack it too.
    """
    if path.is_dir() and not (path / INDEX_NAME).is_file():
        raise UserError(
            f"{path}: no {INDEX_NAME} there: not a shard set, or not finished: `liquid tokenize` finishes one, "
            "`liquid data merge` joins its parts"
        )
    index = read_index(open_folder(path))
    rows, start = sample_rows(path, index), 0
    for entry in index["shardlist"]:
        if "chunks" not in entry:
            entry["chunks"] = _chunks(entry["nsamples"], None if rows is None else rows[start:]["offset"])
        start += entry["nsamples"]
    return index


def sample_rows(path: Path, index: dict[str, Any]) -> np.ndarray | None:
    """samples.npy, memory-mapped; None where the index has none, or it is not what the index says."""
    recorded, count = index.get("samples"), sum(entry["nsamples"] for entry in index["shardlist"])
    try:
        if recorded is None or (path / SAMPLES_NAME).stat().st_size != recorded["bytes"]:
            return None
        rows = np.load(path / SAMPLES_NAME, mmap_mode="r", allow_pickle=False)
        return rows if rows.dtype == row_type(recorded, count, str(path)) and rows.shape == (count,) else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _chunks(samples: int, offsets: np.ndarray | None) -> list[list[int]]:
    """Chunks of at most BLOCK samples; one of all where the offsets are not known."""
    if offsets is None:
        return [[0, samples, 0]] if samples else []
    return [[first, min(BLOCK, samples - first), int(offsets[first])] for first in range(0, samples, BLOCK)]


def chunk_spans(entry: dict[str, Any]) -> list[tuple[int, int]]:
    """(offset, bytes) of the chunks of a shard's index entry."""
    offsets = [offset for _, _, offset in entry["chunks"]]
    return [(start, end - start) for start, end in zip(offsets, [*offsets[1:], entry["bytes"]], strict=False)]


def chunk_files(tar: Path, spans: list[tuple[int, int]]) -> Iterator[dict[str, Files]]:
    """{key: files} of every span of a tar; what cannot be read is left out. Raises OSError for a file that cannot be
    opened."""
    with open(tar, "rb") as file:
        for offset, size in spans:
            file.seek(offset)
            yield group_files(file.read(size))


def shard_files(folder: Path, entry: dict[str, Any]) -> Iterator[tuple[str, Files]]:
    """(key, files) of the samples of one shard, in order."""
    for group in chunk_files(folder / entry["url"], chunk_spans(entry)):
        yield from group.items()
