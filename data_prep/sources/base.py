"""What a source of samples is: named inputs, each with a number of rows, each row one item.

    Source.inputs() -> names      count(name) -> rows      read(name, start) -> the items of rows start, start + 1, ...

Rows are numbered through all inputs; that numbering is the plan of a set (data_prep/shard_set/plan.py). Any row is
reached from the start of its input without holding more than one item in memory, so a set may be far larger than
memory.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from braceexpand import braceexpand

from data_prep.settings import TokenizeSettings
from liquid_train.errors import UserError

# Inputs are known by their sizes and their first bytes: this many of all of them together, but so many of each at
# least.
HASHED_BYTES = 2**30
HASHED_OF_EACH = 2**16
DAMAGED = "the file is damaged from here on"

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Item:
    """One row before tokenizing.

    info: KEY.json; an image's width and height are added when it is encoded. image: reads the pixels, uint8 [height,
    width, 3]; runs in an encoder process, so it must pickle; None for a text or a chat without an image. text:
    KEY.txt: the caption of an image, or the text itself. problem: why the source says this row is unusable. key: its
    name in the shards, without a dot; None: the row's number. origin: what a message calls it.
    """

    info: dict[str, Any]
    image: Callable[[], np.ndarray] | None = None
    text: str | None = None
    problem: str | None = None
    key: str | None = None
    origin: str = ""


class Source(Protocol):
    """What `liquid tokenize` needs of a source. Reading twice gives the same items; items are made as they are asked
    for."""

    has_images: bool

    def recipe(self) -> dict[str, Any]:
        """Everything that determines the items, as JSON; cheap, because a finished set is recognized by it."""
        ...

    def omitted(self) -> Counter[str]:
        """What the source leaves out by its own rules, by reason."""
        ...

    def inputs(self) -> list[str]: ...

    def count(self, name: str) -> int: ...

    def read(self, name: str, start: int) -> Iterator[Item]: ...


class Rows:
    """Reading an input on from where the last reading stopped, without going through its beginning again.

    A set's shards are read one after the other, and most inputs have no other way to a row than through all rows before
    it: from the start each time, a file of n shards would be read n / 2 times.
    """

    _rest: tuple[str, int, Iterator[Item]] | None = None  # input, its next row, what is left of it

    def read(self, name: str, start: int) -> Iterator[Item]:
        rest, self._rest = self._rest, None
        items = rest[2] if rest and rest[:2] == (name, start) else self.rows_from(name, start)
        row = start
        try:
            for item in items:
                row += 1
                yield item
        except GeneratorExit:
            self._rest = name, row, items
            raise

    def rows_from(self, name: str, start: int) -> Iterator[Item]:
        """The items of an input from row number `start` on."""
        raise NotImplementedError


class FileSource(Rows):
    """A source whose inputs are files; subclasses say which (`suffixes`) and how their rows are read."""

    has_images = True
    suffixes: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()  # of tokenize.{image_key,text_key,images}, those this source follows

    def __init__(self, settings: TokenizeSettings) -> None:
        self.settings = settings
        refuse_unused(settings, self.keys)
        if settings.input is None:
            raise UserError(
                f"tokenize.input has no value: tokenize.source={settings.source} reads files "
                f"({', '.join(self.suffixes)}); give a "
                "file, "
                "a folder, or a pattern as in shards/{00000..00099}.tar"
            )
        self.files = find_files(settings.input, self.suffixes)

    def recipe(self) -> dict[str, Any]:
        options = {key: getattr(self.settings, key) for key in self.keys if getattr(self.settings, key) is not None}
        hashed = max(HASHED_OF_EACH, HASHED_BYTES // len(self.files))
        return {"inputs": {name: identity(path, hashed) for name, path in self.files.items()}, **options}

    def omitted(self) -> Counter[str]:
        return Counter()

    def inputs(self) -> list[str]:
        return list(self.files)

    def count(self, name: str) -> int:
        return sum(1 for _ in self.rows_from(name, 0))


def find_files(pattern: str, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Files that tokenize.input names, sorted by name: {path relative to what all of them share: path}.

    A folder stands for all files with one of the suffixes below it. Raises UserError where something is missing or
    nothing is found.
    """
    files: set[Path] = set()
    for part in expand(pattern):
        path = Path(part).expanduser()
        if path.is_dir():
            found = [p for p in path.rglob("*") if p.name.endswith(suffixes) and p.is_file()]
        else:
            found = (
                [path] if path.is_file() else [Path(p) for p in glob(str(path), recursive=True) if Path(p).is_file()]
            )
        if not found:
            what = f"no {', '.join(suffixes)} file in that folder" if path.is_dir() else "no such file or folder"
            raise UserError(f"tokenize.input={part}: {what}")
        files |= {Path(os.path.abspath(p)) for p in found}
    for file in sorted(files):
        if not file.name.endswith(suffixes):
            raise UserError(
                f"tokenize.input={file}: this source reads {', '.join(suffixes)} files; choose another tokenize.source"
            )
    root = os.path.commonpath([p.parent for p in files])
    return dict(sorted((readable(p.relative_to(root).as_posix()), p) for p in files))


def expand(pattern: str) -> list[str]:
    """Braces written out: a{1..2} is a1 and a2; a file whose name has braces is meant as it is."""
    if Path(pattern).expanduser().exists():
        return [pattern]
    try:
        return list(braceexpand(pattern))
    except ValueError as error:
        raise UserError(
            f"tokenize.input={pattern}: a brace without its counterpart, and no file of that name; write "
            f"{{00000..00099}}"
        ) from error


def identity(path: Path, hashed: int) -> dict[str, Any]:
    """Size of a file, and sha256 of its first `hashed` bytes."""
    try:
        with open(path, "rb") as file:
            return {"bytes": path.stat().st_size, "sha256": hashlib.sha256(file.read(hashed)).hexdigest()}
    except OSError as error:
        raise UserError(f"tokenize.input={path}: cannot be read: {error.strerror}") from error


def refuse_unused(settings: TokenizeSettings, used: tuple[str, ...]) -> None:
    """Raise UserError for a setting that the source would ignore."""
    for key, unset in (("images", None), ("image_key", None), ("text_key", None), ("copies", 1)):
        value = getattr(settings, key)
        if key not in used and value != unset:
            raise UserError(f"tokenize.{key}={value}: tokenize.source={settings.source} does not use it; leave it out")


def readable(value: Any) -> Any:
    """JSON without lone surrogates, which JSON can spell and UTF-8 and the tokenizers cannot: U+FFFD stands in their
    place."""
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, list):
        return [readable(v) for v in value]
    return {readable(k): readable(v) for k, v in value.items()} if isinstance(value, dict) else value


def caption(row: dict[str, Any], keys: tuple[str, ...]) -> str | None:
    """The first of the texts under `keys` that is not blank, without blanks around it."""
    return next((row[key].strip() for key in keys if isinstance(row.get(key), str) and row[key].strip()), None)
