"""What a source of samples is: named inputs, each with a number of rows, each row one item.

    Source.inputs() -> names      count(name) -> rows      read(name, start) -> the items of rows start, start + 1, ...

Rows are numbered through all inputs; that numbering is the plan of a set (data_prep/plan.py). Any row is reached from the start of
its input without holding more than one item in memory, so a set may be far larger than memory.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from braceexpand import braceexpand

from liquid_train.config import TokenizeSettings

HASHED_BYTES = 64 * 2**20  # an input up to this size is known by its content, a larger one by its size and its beginning


@dataclass(frozen=True)
class Item:
    """One row before tokenizing.

    info: KEY.json; an image's width and height are added when it is encoded. image: reads the pixels, uint8 [height, width, 3]; runs
    in an encoder process, so it must pickle; None for a text or a chat without a picture. text: KEY.txt: the caption of an image, or
    the text itself. problem: why the source says this row is unusable. key: its name in the shards, without a dot; None: the row's
    number. origin: what a message calls it.
    """

    info: dict[str, Any]
    image: Callable[[], np.ndarray] | None = None
    text: str | None = None
    problem: str | None = None
    key: str | None = None
    origin: str = ""


class Source(Protocol):
    """What `liquid tokenize` needs of a source. Reading twice gives the same items; items are made as they are asked for."""

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


class FileSource:
    """A source whose inputs are files; subclasses say which (`suffixes`) and how their rows are read."""

    has_images = True
    suffixes: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()  # of tokenize.{image_key,text_key,images}, those this source follows

    def __init__(self, settings: TokenizeSettings) -> None:
        self.settings = settings
        refuse_unused(settings, self.keys)
        if settings.input is None:
            raise ValueError(f"tokenize.input has no value: tokenize.source={settings.source} reads files ({', '.join(self.suffixes)}); give a file, "
                             "a folder, or a pattern as in shards/{00000..00099}.tar")  # fmt: skip
        self.files = find_files(settings.input, self.suffixes)

    def recipe(self) -> dict[str, Any]:
        options = {key: getattr(self.settings, key) for key in self.keys if getattr(self.settings, key) is not None}
        return {"inputs": {name: identity(path) for name, path in self.files.items()}, **options}

    def omitted(self) -> Counter[str]:
        return Counter()

    def inputs(self) -> list[str]:
        return list(self.files)

    def count(self, name: str) -> int:
        return sum(1 for _ in self.read(name, 0))

    def read(self, name: str, start: int) -> Iterator[Item]:
        raise NotImplementedError


def find_files(pattern: str, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Files that tokenize.input names, sorted by name: {path relative to what all of them share: path}.

    A folder stands for all files with one of the suffixes below it. Raises ValueError where something is missing or nothing is found.
    """
    files: list[Path] = []
    for part in braceexpand(pattern):
        path = Path(part).expanduser()
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.name.endswith(suffixes) and p.is_file())
        else:
            found = [path] if path.is_file() else [Path(p) for p in sorted(glob(str(path), recursive=True)) if Path(p).is_file()]
        if not found:
            what = f"no {', '.join(suffixes)} file in that folder" if path.is_dir() else "no such file or folder"
            raise ValueError(f"tokenize.input={part}: {what}")
        files += found
    for file in files:
        if not file.name.endswith(suffixes):
            raise ValueError(f"tokenize.input={file}: this source reads {', '.join(suffixes)} files; choose another tokenize.source")
    root = _common_folder(files)
    return {p.absolute().relative_to(root).as_posix(): p for p in sorted(set(files))}


def _common_folder(files: list[Path]) -> Path:
    folder = files[0].absolute().parent
    while not all(folder in p.absolute().parents for p in files):
        folder = folder.parent
    return folder


def identity(path: Path) -> dict[str, Any]:
    """Size and sha256 of a file, the latter of its first 64 MiB: cheap also for a large input."""
    with open(path, "rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.sha256(file.read(HASHED_BYTES)).hexdigest()}


def refuse_unused(settings: TokenizeSettings, used: tuple[str, ...]) -> None:
    """Raise ValueError for a setting that the source would ignore."""
    for key, unset in (("images", None), ("image_key", None), ("text_key", None), ("copies", 1)):
        value = getattr(settings, key)
        if key not in used and value != unset:
            raise ValueError(f"tokenize.{key}={value}: tokenize.source={settings.source} does not use it; leave it out")
