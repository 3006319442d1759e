"""Lines of a text file, plain or compressed: they end at \\n alone, and a file that breaks off says so."""

from __future__ import annotations

import gzip
import io
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import zstandard

BLOCK = 2**16  # compressed bytes that are read at once
MAX_WINDOW = 2**31  # bytes: what zstd's --long=31 needs


class BrokenOff(ValueError):
    """A file that cannot be read on. lost: rows that lie behind the damage, at least 1; more only where the file has
    bytes behind it, by the bytes a row took before."""

    def __init__(self, rows: int, read: int, size: int) -> None:
        super().__init__()
        self.lost = max(1, round(rows * (size - read) / read)) if read else 1


def lines(path: Path) -> Iterator[bytes]:
    """Lines that are not blank. Raises BrokenOff where a compressed stream is damaged or breaks off, and OSError where
    the file cannot be read now."""
    rows = 0
    with open(path, "rb") as file:
        try:
            for line in _unpacking(file, path.suffix.lower()):
                if line.strip():
                    rows += 1
                    yield line
        except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError):
            raise BrokenOff(rows, file.tell(), os.fstat(file.fileno()).st_size) from None


def _unpacking(file: IO[bytes], suffix: str) -> Any:
    if suffix == ".gz":
        return gzip.GzipFile(fileobj=file)
    return io.BufferedReader(ZstdReader(file)) if suffix == ".zst" else file


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
