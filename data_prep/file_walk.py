"""The files below a folder, by their names: links are followed, but no folder is read twice, and what is hidden stays
out."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from enum import IntEnum
from functools import cached_property
from pathlib import Path, PurePath
from typing import NamedTuple

from liquid_train.errors import UserError

HIDDEN = "hidden file or folder"  # .ipynb_checkpoints, .DS_Store, ._0.jpg of a Mac: copies and thumbnails, no data
LINKED_TWICE = "linked once more"
DANGLING = "link that leads nowhere"
NO_FILE = "neither file nor folder"
MAC_ARCHIVE = "__MACOSX"  # what macOS adds to an archive: a ._ file for every file


class Kind(IntEnum):
    FILE, FOLDER, LINK, OTHER = range(4)


class FolderNames:
    """The names of all that is in one folder."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = list(names)

    @cached_property
    def by_stem(self) -> dict[str, list[str]]:
        """Names without their last suffix -> names: "a" -> a.jpg, a.TXT."""
        found: dict[str, list[str]] = {}
        for name in self.names:
            found.setdefault(PurePath(name).stem, []).append(name)
        return found


class FoundFile(NamedTuple):
    """folder: what lies next to it. dangling: a link that leads nowhere."""

    path: Path
    folder: FolderNames
    dangling: bool = False


def is_hidden(name: str) -> bool:
    return (name.startswith(".") and name not in (".", "..")) or name == MAC_ARCHIVE


def walk_files(root: Path, omitted: Counter[str]) -> Iterator[FoundFile]:
    """Files below `root` in order of their names, folders among them; only the names of the folders above are held.

    A link to a folder is followed, unless it leads to one that was read already, or that lies below `root` and is
    reached there without it. What is left out is counted in `omitted`, by reason. A link that leads nowhere counts as
    a file: who opens it says what is missing. Raises UserError for a folder that cannot be read.
    """
    yield from _walk(root, Path(os.path.realpath(root)), {_identity(root)}, omitted)


def _walk(folder: Path, root: Path, read: set[tuple[int, int]], omitted: Counter[str]) -> Iterator[FoundFile]:
    try:
        with os.scandir(folder) as found:
            entries = sorted((entry.name, _kind(entry)) for entry in found)
        names = FolderNames(name for name, _ in entries)
        for name, kind in entries:
            path = folder / name
            if is_hidden(name):
                omitted[HIDDEN] += 1
            elif kind is Kind.LINK and not os.path.exists(path):
                yield FoundFile(path, names, dangling=True)
            elif kind is Kind.FILE or (kind is Kind.LINK and path.is_file()):
                yield FoundFile(path, names)
            elif kind is Kind.OTHER or not path.is_dir():  # a pipe, which would wait for ever, or a device
                omitted[NO_FILE] += 1
            elif _identity(path) in read or (kind is Kind.LINK and _is_met_below(root, path)):
                omitted[LINKED_TWICE] += 1
            else:
                read.add(_identity(path))
                yield from _walk(path, root, read, omitted)
    except OSError as error:
        path = error.filename or folder
        raise UserError(f"tokenize.input={path}: cannot be read: {error.strerror}") from error


def _kind(entry: os.DirEntry[str]) -> Kind:
    """What the folder itself says of an entry: no look at the file, which takes long where a network is between."""
    if entry.is_symlink():
        return Kind.LINK
    if entry.is_dir(follow_symlinks=False):
        return Kind.FOLDER
    return Kind.FILE if entry.is_file(follow_symlinks=False) else Kind.OTHER


def _identity(path: Path) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _is_met_below(root: Path, link: Path) -> bool:
    """Whether what a link leads to is below `root` and on a way without hidden folders: it is read where it lies."""
    target = Path(os.path.realpath(link))
    return target.is_relative_to(root) and not any(map(is_hidden, target.relative_to(root).parts))
