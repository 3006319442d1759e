"""Rows of list files as JSON objects: JSON lines, one JSON array, a table of text or of parquet; a stream, whatever its
length."""

from __future__ import annotations

import codecs
import json
import os
import re
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

from data_prep.source import DAMAGED
from data_prep.sources._lines import BrokenOff, lines
from liquid_train.text_normalizer import BOM, normalize_json

ListRow = dict[str, Any] | str  # an entry of the list, or why it is none

LINES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
NOT_JSON = "row is not JSON"
NO_ARRAY = "the file is not a JSON array"
NO_COCO = "the file is an object, and not COCO's annotations"
WHOLE_FILE = (DAMAGED, NO_ARRAY, NO_COCO)  # problems of a row that stands for any number of them

ESCAPE, MARK = b"\\u", codecs.BOM_UTF8  # only where one of these is there is a text normalized
BLOCK = 2**20  # bytes of a JSON array that are read at once
MAX_ELEMENT = 2**26  # characters: an element that does not end within them is damaged
BLANKS = re.compile(r"[ \t\r\n]*")
NOT_UTF8 = re.compile("[\udc80-\udcff]")  # what surrogateescape makes of such bytes


def json_rows(path: Path) -> Iterator[ListRow]:
    """Rows of a .jsonl, plain or compressed, or of a .json, which may be an array or JSON lines."""
    name = path.name.lower()
    return jsonl_rows(path) if name.endswith(LINES) or has_json_lines(path) else json_array(path)


def jsonl_rows(path: Path) -> Iterator[ListRow]:
    """One row a line that is not blank; where the file breaks off, DAMAGED for each that is lost."""
    try:
        for line in lines(path):
            row = parse_row(line)
            if row is NOT_JSON and not line.endswith(b"\n"):  # the last line of a file that lost its end
                row = DAMAGED
            yield row
    except BrokenOff as damage:
        yield from repeat(DAMAGED, damage.lost)


def parse_row(line: bytes) -> ListRow:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return NOT_JSON
    if ESCAPE in line or MARK in line:
        row = normalize_json(row)
    return row if isinstance(row, dict) else "row is not a JSON object"


def has_json_lines(path: Path) -> bool:
    """Whether the first line of a .json is a whole object, and not the last line."""
    with open(path, "rb") as file:
        for line in iter(lambda: file.readline(MAX_ELEMENT), b""):
            if line.strip():
                begins = line.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"{")
                return begins and isinstance(parse_row(line), dict) and bool(file.read(1))
    return False


def json_array(path: Path) -> Iterator[ListRow]:
    """The elements of one JSON array, NaN among them; where the file breaks off, DAMAGED for each that is lost."""
    text = _Text(path)
    try:
        if text.next_character() != "[":
            yield NO_ARRAY if text.buffer else DAMAGED
            return
        rows, text.at = 0, text.at + 1
        following = text.next_character()
        while following != "]":
            row = text.element()
            rows += 1
            yield row
            following = text.next_character()
            if following not in (",", "]"):
                raise ValueError("no comma")
            text.at += following == ","
            following = text.next_character() if following == "," else following
        text.at += 1
        if text.next_character():
            raise ValueError("more than one array")
    except (ValueError, RecursionError):  # ValueError also for a number of thousands of digits
        yield from repeat(DAMAGED, BrokenOff(rows, text.read - text.left(), text.size).lost)
    finally:
        text.file.close()


class _Text:
    """A window over a JSON file: `buffer` from `at` on is what is not parsed yet. read, size: in bytes."""

    def __init__(self, path: Path) -> None:
        self.file = open(path, "rb")  # noqa: SIM115 (closed by json_array)
        self.size = os.fstat(self.file.fileno()).st_size
        self.buffer, self.at, self.read = "", 0, 0
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
        self._json = json.JSONDecoder()

    def left(self) -> int:
        """Bytes of the buffer that are not parsed yet."""
        return len(self.buffer[self.at :].encode("utf-8", "surrogateescape"))

    def more(self) -> bool:
        """Read on, twice as much as is there; False at the end of the file."""
        block = self.file.read(max(BLOCK, len(self.buffer) - self.at))
        self.read += len(block)
        self.buffer = self.buffer[self.at :] + self._decoder.decode(block, not block)
        self.at = 0
        return bool(block)

    def next_character(self) -> str:
        """The next one that is not blank, empty at the end of the file; `at` is its place."""
        while True:
            found = BLANKS.match(self.buffer, self.at)
            self.at = found.end() if found else self.at
            if self.at < len(self.buffer) or not self.more():
                return self.buffer[self.at : self.at + 1]

    def element(self) -> ListRow:
        """The value at `at`. Raises ValueError where there is none, and RecursionError."""
        while True:
            try:
                value, end = self._json.raw_decode(self.buffer, self.at)
                if end < len(self.buffer) or not self.more():  # a number may go on in the next block
                    break
            except ValueError:
                if len(self.buffer) - self.at > MAX_ELEMENT or not self.more():
                    raise
        spelled, self.at = self.buffer[self.at : end], end
        plain = spelled.isascii()  # Python knows without looking
        if not plain and NOT_UTF8.search(spelled):
            return NOT_JSON
        if not isinstance(value, dict):
            return "row is not a JSON object"
        return dict(normalize_json(value)) if "\\u" in spelled or (not plain and BOM in spelled) else value
