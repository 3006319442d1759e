"""The `text` source: JSON lines with `text`, plain or compressed (.gz, .zst)."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import zstandard

from data_prep.sources.base import FileSource, Item
from data_prep.sources.listed import parse_row

DAMAGED = "the file is damaged from here on"


class TextSource(FileSource):
    """One document a line; what is longer than tokenize.max_characters is cut into several samples when it is written."""

    has_images = False
    suffixes = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json.gz", ".json.zst")
    keys = ("text_key",)

    def read(self, name: str, start: int) -> Iterator[Item]:
        key = self.settings.text_key or "text"
        for number, line in enumerate(islice(lines(self.files[name]), start, None), start):
            origin = f"{name}, row {number}"
            row = DAMAGED if line is None else parse_row(line)
            if isinstance(row, str):
                yield Item({}, problem=row, origin=origin)
            elif not isinstance(row.get(key), str) or not row[key].strip():
                yield Item({}, problem=f"no {key}", origin=origin)
            else:
                yield Item({}, text=row[key], origin=origin)


def lines(path: Path) -> Iterator[bytes | None]:
    """Lines that are not blank; a last None where the compressed stream breaks."""
    try:
        with open(path, "rb") as file:
            stream: io.IOBase | gzip.GzipFile = file
            if path.suffix == ".gz":
                stream = gzip.GzipFile(fileobj=file)
            elif path.suffix == ".zst":
                stream = io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True))
            for line in stream:
                if line.strip():
                    yield line
    except (EOFError, OSError, zstandard.ZstdError):
        yield None
