"""A cache folder of chunks that were read from remote storage, with a size limit; the least recently used go first.

    FOLDER/usage              bytes that the folder holds, as text; locked while a process changes it
    FOLDER/ab/ab12....chunk   a chunk and 4 bytes of CRC-32; its modification time is its last use
    FOLDER/ab/....aside       a chunk that is being written: of full size from the start so that it counts; renamed when
                              it is complete

All workers and ranks of a machine share the folder. Bytes are reserved in `usage` before they are written: a process
that is killed leaves it too high, never too low, and the next scan of the folder corrects it. (No stock package
fits: fsspec's caching file systems have no size limit, and diskcache unpickles what it finds.)
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from liquid_train.errors import UserError

log = logging.getLogger(__name__)

CHECK_BYTES = 4
KEPT = 0.9  # chunks are evicted down to this share of the limit, so that the folder is scanned once per tenth of it
ABANDONED_SECONDS = 600  # an older .aside file has lost its writer


class ChunkCache:
    """Chunks by key in `folder`, at most `gib` GiB. Holds no open file and pickles.

    Raises UserError when the limit is not positive or the folder cannot be written to.
    """

    def __init__(self, folder: str | Path, gib: float) -> None:
        self.folder = Path(folder).absolute()
        self.limit = int(gib * 2**30)
        self._warned = False
        if self.limit <= 0:
            raise UserError(
                f"data.cache_gib={gib}: the size of the cache in GiB, more than 0; data.cache=null turns the cache off"
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._usage():
                pass
        except OSError as error:
            raise UserError(
                f"data.cache={folder}: cannot be written to: {error.strerror}; choose another folder, or null for none"
            ) from error

    def get(self, key: str, length: int) -> bytes | None:
        """The chunk, if it is cached with this length and undamaged; else None."""
        path = self._path(key)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            self._warn(error)
            return None
        chunk = content[:-CHECK_BYTES]
        with contextlib.suppress(OSError):  # another process may remove it now
            if len(chunk) != length or _check(chunk) != content[-CHECK_BYTES:]:
                log.warning("%s: damaged, read again from its source", path)
                path.unlink()
                return None
            os.utime(path)
        return chunk

    def put(self, key: str, chunk: bytes) -> None:
        """Store a chunk if there is room. A cache that cannot be written to is reported once, and then not used."""
        path, size = self._path(key), len(chunk) + CHECK_BYTES
        if size > self.limit * KEPT or path.exists():
            return
        staging_directory = None
        try:
            path.parent.mkdir(exist_ok=True)
            staging_directory = self._reserve(path, size)
            if staging_directory is None:
                return
            with open(staging_directory, "r+b") as file:  # keeps its size: another process may be adding up the folder
                file.write(chunk + _check(chunk))
            with self._usage():  # locked, because a file renamed during a scan would not be counted
                os.replace(staging_directory, path)
        except OSError as error:
            self._warn(error)
            if staging_directory is not None:
                staging_directory.unlink(missing_ok=True)

    def _reserve(self, path: Path, size: int) -> Path | None:
        """A file of `size` bytes next to `path`; older chunks are evicted if needed. None where files that other
        processes are writing fill the cache."""
        with self._usage() as usage:
            digits = os.pread(usage, 20, 0)
            used = int(digits) if digits.isdigit() else None
            if used is None or used + size > self.limit:
                used = self._shrink(int(self.limit * KEPT) - size)
                if used + size > self.limit:
                    return None
            descriptor, staging_directory = tempfile.mkstemp(suffix=".aside", dir=path.parent)
            try:
                os.truncate(descriptor, size)
            finally:
                os.close(descriptor)
            os.pwrite(usage, f"{used + size:020}".encode(), 0)
        return Path(staging_directory)

    def _shrink(self, target: int) -> int:
        """Remove the least recently used chunks until the folder has at most `target` bytes; returns its size."""
        files: list[tuple[int, int, str]] = []  # last use in ns, bytes, path
        total = 0
        for folder in [entry for entry in os.scandir(self.folder) if entry.is_dir()]:
            for entry in os.scandir(folder):
                kind = os.path.splitext(entry.name)[1]
                if kind not in (".chunk", ".aside"):
                    continue
                with contextlib.suppress(FileNotFoundError):  # its reader found it damaged
                    status = entry.stat()
                    total += status.st_size
                    if kind == ".chunk":
                        files.append((status.st_mtime_ns, status.st_size, entry.path))
                    elif status.st_mtime < time.time() - ABANDONED_SECONDS:
                        files.append((0, status.st_size, entry.path))
        for _, size, name in sorted(files):
            if total <= target:
                break
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
            total -= size
        return total

    @contextmanager
    def _usage(self) -> Iterator[int]:
        """The file `usage`, locked; the lock ends with the process."""
        descriptor = os.open(self.folder / "usage", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)

    def _path(self, key: str) -> Path:
        # keys come out of index files: never a path of theirs
        name = hashlib.blake2b(key.encode(), digest_size=20).hexdigest()
        return self.folder / name[:2] / f"{name}.chunk"

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            log.warning("data.cache=%s: %s; chunks are not kept", self.folder, error.strerror)
            self._warned = True


def _check(chunk: bytes) -> bytes:
    return zlib.crc32(chunk).to_bytes(CHECK_BYTES, "little")
