"""Where `liquid tokenize` writes a set: a folder, or a URL of an object store (s3://bucket/set, gs://bucket/set).

Both hold the same files. In an object store a file appears whole or not at all, but nothing can be locked or renamed:
the lock and the shard being written lie in a folder of this machine.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from data_prep.shard_set.writer import PARTIAL
from liquid_train.data.outage import RETRY_SECONDS
from liquid_train.errors import UserError
from liquid_train.files import check_folder, move_into_place, sha256_of, write_synced

if TYPE_CHECKING:  # fsspec: a tenth of a second, which every process of a local pass would spend
    from liquid_train.data.remote import RemoteFolder


class TextFile(Protocol):
    """A file that may be there: its name for messages, and its content."""

    def read_text(self, encoding: str) -> str: ...


class Place(Protocol):
    """The files of a set, by name relative to its folder. Methods raise OSError where the place fails.

    work: a local folder for the lock and for shards that are being written.
    """

    work: Path

    def check(self, key: str) -> None:
        """Try whether something can be written, before the work. key: the setting with its value. Raises UserError."""
        ...

    def file(self, name: str) -> TextFile: ...

    def read(self, name: str) -> bytes: ...

    def names(self, folder: str, start: str, end: str) -> list[str]:
        """Sorted names of the files in a folder ("" or a name) that start and end so; none where it does not exist."""
        ...

    def write(self, name: str, content: bytes) -> None:
        """Write a file, whole or not at all."""
        ...

    def write_fast(self, name: str, content: bytes) -> None:
        """As write, of what a power cut may cost."""
        ...

    def take(self, staged: Path, name: str) -> None:
        """Move a complete local file of `work` here."""
        ...

    def remove(self, *names: str) -> None:
        """Remove files; one that is not there is no error."""
        ...

    def is_intact(self, entry: dict[str, Any]) -> bool:
        """Whether the tar of an index entry is there as recorded."""
        ...


class LocalPlace:
    """A folder of a mounted file system."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.work = path / PARTIAL

    def __str__(self) -> str:
        return str(self.path)

    def check(self, key: str) -> None:
        check_folder(self.path, key)

    def file(self, name: str) -> Path:
        return self.path / name

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def names(self, folder: str, start: str, end: str) -> list[str]:
        try:
            found = os.listdir(self.path / folder)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(name for name in found if name.startswith(start) and name.endswith(end))

    def write(self, name: str, content: bytes) -> None:
        write_synced(self.path / name, content)

    def write_fast(self, name: str, content: bytes) -> None:
        path = self.path / name
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.write_bytes(content)
        os.replace(partial, path)

    def take(self, staged: Path, name: str) -> None:
        move_into_place(staged, self.path / name)

    def remove(self, *names: str) -> None:
        for name in names:
            (self.path / name).unlink(missing_ok=True)

    def is_intact(self, entry: dict[str, Any]) -> bool:
        tar = self.path / entry["url"]
        return bool(tar.is_file() and tar.stat().st_size == entry["bytes"] and sha256_of(tar) == entry["sha256"])


class RemotePlace:
    """A URL that fsspec writes to. A tar there is taken for intact by its size: reading it back would cost as much as
    the pass saves."""

    def __init__(self, url: str) -> None:
        from liquid_train.data.remote import RemoteFolder

        self.folder = RemoteFolder(url)
        self.url = self.folder.url
        name = hashlib.sha256(self.url.encode()).hexdigest()[:16]
        self.work = Path(tempfile.gettempdir()) / f"liquid-tokenize-{os.getuid()}" / name / PARTIAL
        self._sizes: dict[str, int] | None = None  # of the tars, listed once and kept up to date

    def __str__(self) -> str:
        return self.url

    def check(self, key: str) -> None:
        try:
            self.write(f"{PARTIAL}/probe", b"")
            self.remove(f"{PARTIAL}/probe")
        except OSError as error:
            raise UserError(
                f"{key}: cannot be written to: {error.strerror or error}; check the bucket's name and the credentials "
                "in the environment, or choose another output"
            ) from error
        self.folder.patience = RETRY_SECONDS  # what fails from here on is no mistyped address

    def file(self, name: str) -> RemoteFile:
        return RemoteFile(self.folder, name)

    def read(self, name: str) -> bytes:
        return self.folder.read(name)

    def names(self, folder: str, start: str, end: str) -> list[str]:
        found = self.folder.files(folder)
        return sorted(name for name in found if name.startswith(start) and name.endswith(end))

    def write(self, name: str, content: bytes) -> None:
        self.folder.write(name, content)

    def write_fast(self, name: str, content: bytes) -> None:
        self.write(name, content)

    def take(self, staged: Path, name: str) -> None:
        content = staged.read_bytes()
        self.folder.write(name, content)
        if self._sizes is not None:
            self._sizes[name] = len(content)
        staged.unlink()

    def remove(self, *names: str) -> None:
        self.folder.remove(names)
        for name in names:
            (self._sizes or {}).pop(name, None)

    def is_intact(self, entry: dict[str, Any]) -> bool:
        if self._sizes is None:
            self._sizes = self.folder.files("")
        return self._sizes.get(entry["url"]) == entry["bytes"]


class RemoteFile:
    """A file at a URL."""

    def __init__(self, folder: RemoteFolder, name: str) -> None:
        self.folder, self.name = folder, name

    def __str__(self) -> str:
        return f"{self.folder.url}/{self.name}"

    def read_text(self, encoding: str) -> str:
        return self.folder.read(self.name).decode(encoding)


def open_place(path: str | Path) -> LocalPlace | RemotePlace:
    """The place at a path or URL. Raises UserError for a URL whose kind is unknown, needs a package that is not
    installed, or takes no files."""
    text = str(path)
    if text.startswith("file://"):
        return LocalPlace(Path(text.removeprefix("file://")))
    if not (isinstance(path, str) and "://" in text):
        return LocalPlace(Path(path))
    if text.startswith(("http://", "https://")):
        raise UserError(f"tokenize.output={text}: nothing can be written to a web server; give a folder or s3://...")
    return RemotePlace(text)
