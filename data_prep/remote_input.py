"""tokenize.input and tokenize.images at URLs of fsspec: s3://, gs://, https://.

A list, a tar or a parquet file is fetched whole into a folder for temporary files when it is read, and goes when others
are: the sources read files. Images that a list names are fetched one by one, where they are encoded.
"""

from __future__ import annotations

import posixpath
import tempfile
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from glob import has_magic
from pathlib import Path
from typing import Any

from liquid_train.data.outage import OPENING_SECONDS, RETRY_SECONDS
from liquid_train.errors import UserError

KEPT = 4  # fetched files at a time in one process: those being read, and the one before
# What stores call the state of a file's content, best first
STATES = ("ETag", "etag", "md5Hash", "content_md5", "generation", "mtime", "LastModified", "last_modified", "created")


def is_url(path: str | None) -> bool:
    return path is not None and "://" in path and not path.startswith("file://")


class RemoteFiles(Mapping[str, Path]):
    """The files that URLs name: {path relative to what all of them share: a local copy}, fetched when it is asked
    for."""

    def __init__(self, urls: list[str], suffixes: tuple[str, ...], omitted: Counter[str]) -> None:
        """A URL that is a folder stands for all files with one of the suffixes below it; the others are counted in
        `omitted`. Raises UserError where something is missing or of another kind."""
        from liquid_train.data.remote import file_system, patiently  # fsspec: a tenth of a second for each process

        self.system: Any = None
        found: dict[str, dict[str, Any]] = {}
        for url in urls:
            self.system, path = file_system(url)
            try:
                found |= patiently(url, lambda path=path: self._files(path, suffixes, omitted), OPENING_SECONDS)  # type: ignore[misc]
            except OSError as error:
                raise UserError(f"tokenize.input={url}: {error.strerror}") from error
            if not found:
                raise UserError(f"tokenize.input={url}: no {', '.join(suffixes)} file there")
        for path in found:
            if not path.lower().endswith(suffixes):
                raise UserError(
                    f"tokenize.input={path}: this source reads {', '.join(suffixes)} files; choose another "
                    "tokenize.source"
                )
        self._patiently = patiently
        self.protocol = urls[0].partition("://")[0]
        root = posixpath.commonpath([posixpath.dirname(path) for path in found])
        self._paths = {posixpath.relpath(path, root): path for path in sorted(found)}
        self._info = {name: found[path] for name, path in self._paths.items()}
        self._folder = tempfile.TemporaryDirectory(prefix="liquid-input-")
        self._local: OrderedDict[str, Path] = OrderedDict()

    def _files(self, path: str, suffixes: tuple[str, ...], omitted: Counter[str]) -> dict[str, dict[str, Any]]:
        if has_magic(path):
            matched: dict[str, dict[str, Any]] = self.system.glob(path, detail=True)
            return {name: info for name, info in matched.items() if info["type"] == "file"}
        if self.system.isfile(path):
            return {path: self.system.info(path)}
        below: dict[str, dict[str, Any]] = self.system.find(path, detail=True)
        for name in below:
            if not name.lower().endswith(suffixes):
                omitted[f"{posixpath.splitext(name)[1] or 'other'} file"] += 1
        return {name: info for name, info in below.items() if name.lower().endswith(suffixes)}

    def __len__(self) -> int:
        return len(self._paths)

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __getitem__(self, name: str) -> Path:
        if name in self._local:
            self._local.move_to_end(name)
            return self._local[name]
        path = self._paths[name]
        local = Path(tempfile.mkdtemp(dir=self._folder.name), posixpath.basename(path))
        self._patiently(self.url(name), lambda: self.system.get_file(path, str(local)), RETRY_SECONDS)
        self._local[name] = local
        while len(self._local) > KEPT:
            _, oldest = self._local.popitem(last=False)
            oldest.unlink()
        return local

    def url(self, name: str) -> str:
        path = self._paths[name]
        return path if "://" in path else f"{self.protocol}://{path}"

    def identity(self, name: str) -> dict[str, Any]:
        """Size and state of a file, as its store tells them, without reading it."""
        info = self._info[name]
        state = next((str(info[key]) for key in STATES if info.get(key) is not None), None)
        return {"bytes": info["size"], **({"state": state} if state else {})}


class RemotePath:
    """The place of an image at a URL, or of the folder of several."""

    def __init__(self, url: str, name: str = "") -> None:
        from liquid_train.data.remote import RemoteFolder

        self.folder, self.name = RemoteFolder(url), name

    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(self.folder.url, posixpath.normpath(name))

    def __str__(self) -> str:
        return f"{self.folder.url}/{self.name}"

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    def read_bytes(self) -> bytes:
        """Raises OSError."""
        return self.folder.read(self.name)
