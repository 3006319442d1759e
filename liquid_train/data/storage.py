"""Where a shard set is stored: a local folder, or anything fsspec reads (s3://, gs://, https://, memory://).

Both kinds have the same few methods, read byte ranges, keep no file open and can be pickled. What cannot be read now is
tried again (outage.py).
"""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol
from uuid import uuid4

from liquid_train.data.outage import local_outage, retried
from liquid_train.files import move_into_place, sync

THREADS = 16  # a shared file system is slow to answer one request, but answers many at a time
SLICE = 256  # files that a thread looks up in one go


class Folder(Protocol):
    """The files of a shard set, by name relative to its folder. Methods raise OSError where a file cannot be read.

    patience: seconds for which a read that fails and may pass is tried again.
    """

    remote: bool
    patience: float

    @property
    def path(self) -> str | Path:
        """A URL without a trailing slash, or a path."""
        ...

    def exists(self) -> bool:
        """Whether the folder exists; True where that is unknown."""
        ...

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        """Bytes start to end of a file, fewer where it ends earlier. FileNotFoundError where there is no such file."""
        ...

    def sizes(self, names: list[str]) -> dict[str, int | None]:
        """Size in bytes of every file that exists; None where it is unknown."""
        ...

    def tars(self) -> list[str]:
        """Names of the folder's tars, sorted."""
        ...

    def write(self, name: str, content: bytes) -> None:
        """Write a file, whole or not at all. Raises OSError."""
        ...


class LocalFolder:
    """A folder of a mounted file system. It begins without patience: a path that is not there is a mistyped one."""

    remote = False

    def __init__(self, path: Path) -> None:
        self._path = path
        self.patience = 0.0

    @property
    def path(self) -> Path:
        return self._path

    def exists(self) -> bool:
        return self.path.is_dir()

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        path = self.path / name

        def content() -> bytes:
            with open(path, "rb") as file:
                file.seek(start)
                return file.read() if end is None else file.read(end - start)

        return retried(str(path), content, self.patience, local_outage)

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
        # a unique name: another machine may be writing the same file
        partial = self.path / f".{name}.{uuid4().hex}.partial"
        try:
            partial.write_bytes(content)
            sync(partial)
            move_into_place(partial, self.path / name)
        finally:
            partial.unlink(missing_ok=True)


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
