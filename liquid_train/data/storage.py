"""Where a shard set lies: a folder of this machine, or any place fsspec reads (s3://, gs://, https://, memory://).

Both kinds answer the same few questions, and both read byte ranges, keep no file open and pickle.
"""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol
from uuid import uuid4

from liquid_train.files import move_into_place, sync

THREADS = 16  # a shared file system answers many questions at once, each of them slowly
SLICE = 256  # files that a thread asks after in one go


class Folder(Protocol):
    """The files of a shard set by name, relative to its folder. Every method raises OSError where a file cannot be
    read."""

    remote: bool

    @property
    def path(self) -> str | Path:
        """A URL without the slash at its end, or a path."""
        ...

    def exists(self) -> bool:
        """Whether the folder is there; True where that cannot be told."""
        ...

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        """Bytes start to end of a file, fewer where it ends before that. FileNotFoundError where there is no such
        file."""
        ...

    def sizes(self, names: list[str]) -> dict[str, int | None]:
        """Bytes of every file that is there; None where the place does not tell or was not asked."""
        ...

    def tars(self) -> list[str]:
        """Names of the folder's tars, sorted."""
        ...

    def write(self, name: str, content: bytes) -> None:
        """Write a file, whole or not at all. OSError where that cannot be done."""
        ...


class LocalFolder:
    """A folder of a mounted file system."""

    remote = False

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def path(self) -> Path:
        return self._path

    def exists(self) -> bool:
        return self.path.is_dir()

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        with open(self.path / name, "rb") as file:
            file.seek(start)
            return file.read() if end is None else file.read(end - start)

    def sizes(self, names: list[str]) -> dict[str, int | None]:
        slices = [names[i : i + SLICE] for i in range(0, len(names), SLICE)]
        with ThreadPoolExecutor(THREADS) as pool:
            return {name: size for found in pool.map(self._sizes, slices) for name, size in found.items()}

    def _sizes(self, names: list[str]) -> dict[str, int | None]:
        found: dict[str, int | None] = {}
        for name in names:
            try:
                status = os.stat(os.path.join(self.path, name))
            except (FileNotFoundError, NotADirectoryError):
                continue
            if stat.S_ISREG(status.st_mode):
                found[name] = status.st_size
        return found

    def tars(self) -> list[str]:
        return sorted(path.name for path in self.path.glob("*.tar"))

    def write(self, name: str, content: bytes) -> None:
        # a name of its own: another machine may write the same file now
        staging_directory = self.path / f".{name}.{uuid4().hex}.partial"
        try:
            staging_directory.write_bytes(content)
            sync(staging_directory)
            move_into_place(staging_directory, self.path / name)
        finally:
            staging_directory.unlink(missing_ok=True)


def open_folder(path: str | Path) -> Folder:
    """The folder at a path or URL. Raises UserError for a URL whose kind is unknown or whose package is not
    installed."""
    text = str(path)
    if text.startswith("file://"):
        return LocalFolder(Path(text.removeprefix("file://")))
    if isinstance(path, str) and "://" in text:
        from liquid_train.data.remote import RemoteFolder  # fsspec is not needed for a path

        return RemoteFolder(text)
    return LocalFolder(Path(path))
