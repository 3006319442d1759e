"""The `text` source: JSON lines with `text`, plain or compressed (.gz, .zst)."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any

import zstandard

from data_prep.file_source import FileSource
from data_prep.source import DAMAGED, SourceRow
from data_prep.sources import SOURCES
from data_prep.sources._listed import parse_row

BLOCK = 2**16  # compressed bytes that are read at once
MAX_WINDOW = 2**31  # bytes: what zstd's --long=31 needs


@SOURCES.register("text")
class TextSource(FileSource):
    """One document a line; what is longer than tokenize.max_characters is cut into several samples when it is
    written."""

    has_images = False
    suffixes = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json.gz", ".json.zst")
    keys = ("text_key",)

    def rows_from(self, name: str, start: int) -> Iterator[SourceRow]:
        key = self.settings.text_key or "text"
        for number, line in enumerate(islice(text_lines(self.files[name]), start, None), start):
            origin = f"{name}, row {number}"
            row = DAMAGED if line is None else parse_row(line)
            if isinstance(row, str):
                yield SourceRow({}, problem=row, origin=origin)
            elif not isinstance(row.get(key), str) or not row[key].strip():
                yield SourceRow({}, problem=f"no {key}", origin=origin)
            else:
                yield SourceRow({}, text=row[key], origin=origin)


def text_lines(path: Path) -> Iterator[bytes | None]:
    """Lines that are not blank; a last None where the file cannot be read on, or breaks off inside its compressed
    stream."""
    try:
        with open(path, "rb") as file:
            stream: Any = file
            if path.suffix == ".gz":
                stream = gzip.GzipFile(fileobj=file)
            elif path.suffix == ".zst":
                stream = io.BufferedReader(ZstdReader(file))
            for line in stream:
                if line.strip():
                    yield line
    except (EOFError, OSError, zlib.error, zstandard.ZstdError):
        yield None


class ZstdReader(io.RawIOBase):
    """The content of a .zst of one or more frames. (zstandard's own reader takes a file that breaks off for one that
    ends.)"""

    def __init__(self, file: IO[bytes]) -> None:
        self.blocks = unpacked(file)
        self.block = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.block:
            block = next(self.blocks, None)
            if block is None:
                return 0
            self.block = memoryview(block)
        taken = min(len(buffer), len(self.block))
        buffer[:taken] = self.block[:taken]
        self.block = self.block[taken:]
        return taken


def unpacked(file: IO[bytes]) -> Iterator[bytes]:
    """Blocks of a .zst's content. Raises EOFError where it breaks off inside a frame."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
    frame = decompressor.decompressobj()
    while block := file.read(BLOCK):
        while block:
            if frame.eof:
                frame = decompressor.decompressobj()
            yield frame.decompress(block)
            block = frame.unused_data if frame.eof else b""
    if not frame.eof:
        raise EOFError("a frame of the .zst breaks off")
