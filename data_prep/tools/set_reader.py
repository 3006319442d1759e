"""Reads the files of some samples of a set, or of all, in order and by their numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.shard_set.check import index_faults
from data_prep.shard_set.stream import Files, chunk_files, chunk_spans, open_index
from liquid_train.errors import UserError


@dataclass(frozen=True)
class StoredSample:
    """A sample as it lies in its tar. key, files: None where the tar is damaged there."""

    number: int
    url: str
    key: str | None
    files: Files | None


class SetReader:
    """A finished set. digest: sha256 over those of its tars. Raises UserError for a folder that holds none."""

    def __init__(self, path: Path) -> None:
        self.path, self.index = path, open_index(path)
        if faults := index_faults(self.index):
            raise UserError(f"{path}: {faults[0]}; `liquid data verify {path}` says more")
        entries = self.index["shardlist"]
        self.name: str = self.index["name"]
        self.samples: int = sum(entry["nsamples"] for entry in entries)
        self.digest = hashlib.sha256("".join(entry["sha256"] for entry in entries).encode()).hexdigest()
        self.codebook_size: int | None = self.index.get("codebook_size")

    def read(self, numbers: np.ndarray | None = None) -> Iterator[StoredSample]:
        """The samples with these numbers, ascending; None: all. Raises UserError where a tar cannot be read."""
        start = 0
        for entry in self.index["shardlist"]:
            for (first, count, _), span in zip(entry["chunks"], chunk_spans(entry), strict=True):
                begin = start + first
                wanted: range | list[int] = range(count)
                if numbers is not None:
                    low, high = np.searchsorted(numbers, [begin, begin + count])
                    wanted = [int(number) - begin for number in numbers[low:high]]
                if len(wanted):
                    yield from self._chunk(entry["url"], span, begin, wanted)
            start += entry["nsamples"]

    def _chunk(self, url: str, span: tuple[int, int], begin: int, wanted: range | list[int]) -> Iterator[StoredSample]:
        try:
            groups = [group for files in chunk_files(self.path / url, [span]) for group in files.items()]
        except OSError as error:
            raise UserError(
                f"{self.path / url}: cannot be read ({error.strerror}); `liquid data verify {self.path}` lists all "
                "that cannot"
            ) from error
        for place in wanted:
            # which sample has lost all its files cannot be told: the last ones of the chunk are missing
            key, files = groups[place] if place < len(groups) else (None, None)
            yield StoredSample(begin + place, url, key, files)
