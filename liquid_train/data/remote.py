"""A folder at an fsspec URL, read by byte ranges from any number of processes.

Credentials and endpoints come from where fsspec's packages look for them: the environment (AWS_PROFILE,
GOOGLE_APPLICATION_CREDENTIALS, FSSPEC_S3_ENDPOINT_URL, FSSPEC_S3_ANON=true) and ~/.config/fsspec.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from fsspec.asyn import AsyncFileSystem
from fsspec.core import url_to_fs

from liquid_train.data.outage import OPENING_SECONDS, retried
from liquid_train.errors import UserError

log = logging.getLogger(__name__)

PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "http": "aiohttp",
    "https": "aiohttp",
    "az": "adlfs",
    "abfs": "adlfs",
}
THREADS = 16  # requests at a time, for those
TIMEOUT_SECONDS = 120  # of one request: a hanging connection is an error like any other
SPOT_CHECKS = 64  # files whose size is requested one by one where a folder cannot be listed
MISSING = -1  # the size of a file that is not there
NOT_IMPLEMENTED = 501  # HTTP status
OUT_OF_RANGE = 416
TRANSIENT_STATUS = (408, 425, 429)  # HTTP statuses below 500 that are worth a retry
T = TypeVar("T")
BUGS = (TypeError, AttributeError, NotImplementedError, AssertionError)


def file_system(url: str) -> tuple[Any, str]:
    """(file system, path there) of an fsspec URL. UserError when its kind is unknown or needs a package that is not
    installed."""
    # uncompressed: a byte range of a compressed file would be a range of something else
    options = {"headers": {"Accept-Encoding": "identity"}} if url.startswith(("http://", "https://")) else {}
    try:
        found: tuple[Any, str] = url_to_fs(url, **options)
        return found
    except ImportError as error:
        kind = url.partition("://")[0].rpartition("::")[2]
        package = PACKAGES.get(kind)
        raise UserError(
            f"{url}: {error}; " + (f"pip install {package}" if package else f"install what fsspec needs for {kind}://")
        ) from error
    except ValueError as error:
        raise UserError(
            f"{url}: {error}; give a folder's path, or a URL like s3://bucket/set, gs://bucket/set, https://host/set"
        ) from error


class RemoteFolder:
    """The files below a URL. Each process opens connections of its own at its first request; none is pickled or
    inherited.

    Raises UserError when the URL's kind is unknown or needs a package that is not installed.
    """

    remote = True

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.patience = OPENING_SECONDS
        self._opened: tuple[int, Any, str] | None = None  # process id, file system, path of the folder there
        self._connect()

    @property
    def path(self) -> str:
        return self.url

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "patience": self.patience, "_opened": None}

    def _connect(self) -> tuple[Any, str]:
        """(file system, the folder's path there) of this process: a forked child must not use its parent's event loop
        and sockets."""
        if self._opened is None or self._opened[0] != os.getpid():
            system, root = file_system(self.url)
            self._opened = (os.getpid(), system, root.rstrip("/"))
        return self._opened[1:]

    def exists(self) -> bool:
        return True  # object stores have no folders: index.json is there or not

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        """As Folder.read. Raises UserError when the server sends more than the range it was asked for."""
        if end is not None and end <= start:
            return b""
        try:
            content: bytes = self._request(
                name, "cat_file", **({"start": start, "end": end} if end is not None else {})
            )
        except OSError as error:
            if error.errno != errno.ERANGE:
                raise
            return b""  # the file ends before `start`
        if end is not None and len(content) > end - start:
            raise UserError(
                f"{self.url}: the server ignores byte ranges and sends whole files; serve the set from one that has "
                "them (nginx, Apache, "
                "any object store), or copy it here"
            )
        return content

    def sizes(self, names: list[str]) -> dict[str, int | None]:
        """As Folder.sizes, by listing the folder once. Where that is not possible (http, or no permission), of up to 64
        files spread over all."""
        if not self._is_http():
            try:
                return self._listed_sizes(names)
            except PermissionError:
                log.info("%s: may not be listed: the sizes of %d files are checked", self.url, SPOT_CHECKS)
        spots = names
        if len(names) > SPOT_CHECKS:
            spots = [names[i * (len(names) - 1) // (SPOT_CHECKS - 1)] for i in range(SPOT_CHECKS)]
        with ThreadPoolExecutor(THREADS) as pool:
            known = dict(zip(spots, pool.map(self._size, spots), strict=True))
        return {name: known.get(name) for name in names if known.get(name) != MISSING}

    def _size(self, name: str) -> int | None:
        try:
            size: int | None = self._request(name, "info")["size"]
            return size
        except FileNotFoundError:
            return MISSING

    def _listed_sizes(self, names: list[str]) -> dict[str, int | None]:
        found: dict[str, int | None] = {}
        for folder in {name.rpartition("/")[0] for name in names}:
            prefix = f"{folder}/" if folder else ""
            for entry in self._list(folder):
                if entry["type"] == "file":
                    found[prefix + entry["name"].rpartition("/")[2]] = entry["size"]
        return {name: found[name] for name in names if name in found}

    def tars(self) -> list[str]:
        return sorted({name for entry in self._list("") if (name := entry["name"].rpartition("/")[2]).endswith(".tar")})

    def write(self, name: str, content: bytes) -> None:
        try:
            self._request(name, "pipe_file", content)
        except NotImplementedError:
            raise OSError(errno.EROFS, f"nothing can be written to {self.url.partition('://')[0]}://") from None

    def files(self, folder: str) -> dict[str, int]:
        """Name -> size in bytes of the files in a folder, "" for the whole URL's; empty where there is none."""
        return {
            entry["name"].rpartition("/")[2]: entry["size"] for entry in self._list(folder) if entry["type"] == "file"
        }

    def remove(self, names: Sequence[str]) -> None:
        """Remove files, many with one request where the store can; one that is not there is no error."""
        system, root = self._connect()
        with contextlib.suppress(FileNotFoundError):
            if len(names) == 1:
                self._request(names[0], "rm_file")
            elif names:
                patiently(self.url, lambda: system.rm([f"{root}/{name}" for name in names]), self.patience)

    def _list(self, folder: str) -> list[dict[str, Any]]:
        self._connect()[0].invalidate_cache()
        try:
            entries: list[dict[str, Any]] = self._request(folder, "ls", detail=True)
            return entries
        except FileNotFoundError:
            return []

    def _is_http(self) -> bool:
        kinds = self._connect()[0].protocol
        return "http" in ([kinds] if isinstance(kinds, str) else kinds)

    def _request(self, name: str, method: str, *arguments: Any, **options: Any) -> Any:
        """Call the file system's method for a file, with retries. Raises OSError with a short reason in `strerror`."""
        system, root = self._connect()
        if isinstance(system, AsyncFileSystem):
            options["timeout"] = TIMEOUT_SECONDS
        path = f"{root}/{name}" if name else root
        return patiently(
            f"{self.url}/{name}", lambda: getattr(system, method)(path, *arguments, **options), self.patience
        )


def patiently(what: str, action: Callable[[], T], seconds: float) -> T:
    """The action's result; what may pass is tried again for `seconds`. Raises OSError with a short reason in
    `strerror`."""
    try:
        return retried(what, action, seconds, may_pass)
    except BUGS:
        raise  # not the network
    except Exception as error:  # every package has its own, many of which are not OSErrors
        raise as_oserror(origin(error), what) from error


def origin(error: Exception) -> Exception:
    """The error behind fsspec's: its http raises FileNotFoundError whenever a size cannot be had, even where the server
    cannot be reached; then the cause tells."""
    cause = error.__cause__
    told = isinstance(cause, TimeoutError) or type(cause).__module__.startswith("aiohttp")
    return cause if isinstance(error, FileNotFoundError) and isinstance(cause, Exception) and told else error


def may_pass(error: Exception) -> bool:
    """Whether a retry may help. It cannot where a file does not exist, or may not be read, or nobody said as whom."""
    error = origin(error)
    if "Credential" in type(error).__name__:  # botocore's NoCredentialsError and its kin
        return False
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return status in TRANSIENT_STATUS or status >= 500 and status != NOT_IMPLEMENTED
    return not isinstance(error, (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, *BUGS))


def as_oserror(error: Exception, what: str) -> OSError:
    """The error as an OSError with a short reason."""
    status = getattr(error, "status", None)
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), what)
    if isinstance(error, PermissionError) or status in (401, 403):
        return PermissionError(errno.EACCES, os.strerror(errno.EACCES), what)
    if status == OUT_OF_RANGE or "InvalidRange" in str(error):  # as HTTP and S3 call it
        return OSError(errno.ERANGE, os.strerror(errno.ERANGE), what)
    log.info("%s: %s: %s", what, type(error).__name__, error)
    return OSError(errno.EIO, f"HTTP {status}" if isinstance(status, int) else type(error).__name__, what)
