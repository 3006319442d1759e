"""Reading index.json: the list of a set's tars and what else is known of the whole set, as small as it can be kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from liquid_train.data.index_builder import missing_index
from liquid_train.data.shard_format import INDEX_KIND, INDEX_NAME
from liquid_train.data.storage import Folder
from liquid_train.errors import UserError

ENTRY = {"url", "nsamples", "bytes", "sha256"}  # what an index says of every tar


class Shard(NamedTuple):
    """What a reader needs of a tar's entry in index.json: a set may have a hundred thousand."""

    url: str
    nsamples: int
    bytes: int
    sha256: str
    chunks: np.ndarray | None = None  # [chunks, 3]: first sample, samples, byte offset; None where samples.npy has all

    @classmethod
    def of(cls, entry: dict[str, Any]) -> Any:
        """The entry as a Shard; any other object of the index as it is."""
        if "sha256" not in entry or not entry.keys() >= ENTRY:
            return entry
        chunks = np.array(entry["chunks"], np.int64).reshape(-1, 3) if "chunks" in entry else None
        return cls(entry["url"], entry["nsamples"], entry["bytes"], entry["sha256"], chunks)


def open_index(folder: Folder) -> tuple[dict[str, Any], np.ndarray | None]:
    """(index.json with a Shard for each entry, rows of the samples) of a folder. The rows are None unless they were
    made just now and could not be stored."""
    index, rows = _load(folder, Shard.of)
    return index, np.concatenate(rows) if rows else None


def read_index(folder: Folder) -> dict[str, Any]:
    """The whole index.json of a shard folder; built first where the tars have none.

    Raises UserError when there is no folder, nothing to build an index of, or the file is not a shard index.
    """
    return _load(folder, None)[0]


def _load(folder: Folder, hook: Callable[[dict[str, Any]], Any] | None) -> tuple[dict[str, Any], list[np.ndarray]]:
    path, rows = folder.path, list[np.ndarray]()
    file = f"{path}/{INDEX_NAME}"
    if not folder.exists():
        raise UserError(f"{path}: no such folder; `liquid tokenize tokenize.output={path} ...` makes a shard set")
    try:
        index = json.loads(folder.read(INDEX_NAME), object_hook=hook)
    except FileNotFoundError:
        index, rows = missing_index(folder)
        if hook:
            index["shardlist"] = [hook(entry) for entry in index["shardlist"]]
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror or error}") from error
    except (ValueError, TypeError) as error:
        raise UserError(f"{file}: not a shard index: {type(error).__name__}: {error}") from error
    try:
        good = index["__kind__"] == INDEX_KIND and all(
            isinstance(s, Shard) or set(s) >= ENTRY for s in index["shardlist"]
        )
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{file}: not a shard index: {type(error).__name__}: {error}") from error
    if not good:
        raise UserError(
            f"{file}: not an index of {INDEX_KIND} with bytes and sha256 of every shard; `liquid tokenize` "
            "writes such a one"
        )
    return {"name": str(path).rpartition("/")[2], **index}, rows
