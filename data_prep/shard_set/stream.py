"""A finished set read from its first byte to its last, a chunk at a time: memory does not grow with the set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from liquid_train.data.shard_format import INDEX_NAME, group_files
from liquid_train.data.shards import read_index
from liquid_train.data.storage import open_folder
from liquid_train.errors import UserError

Files = dict[str, bytes]  # extension -> content of one sample


def open_index(path: Path) -> dict[str, Any]:
    """The index.json of a finished set. Raises UserError where there is none; none is made, for the parts of a set
    lack it too."""
    if path.is_dir() and not (path / INDEX_NAME).is_file():
        raise UserError(
            f"{path}: no {INDEX_NAME} there: not a shard set, or not finished: `liquid tokenize` finishes one, "
            "`liquid data merge` joins its parts"
        )
    return read_index(open_folder(path))


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
