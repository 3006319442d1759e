"""Files that are there whole or not at all, and how their content is told."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path


def is_full(error: BaseException) -> bool:
    """Whether a file could not be written for want of room: on the disk, in a quota, under a limit. Rust libraries give
    the text of it alone."""
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return getattr(error, "errno", None) in numbers or any(f"(os error {n})" in str(error) for n in numbers)


@contextlib.contextmanager
def dispensable(what: str) -> Iterator[None]:
    """Write files that a run can do without: where the disk does not take them, one line on stderr says so, and it goes
    on."""
    try:
        yield
    except OSError as error:
        print(f"{what} could not be written: {error}. The run goes on without.", file=sys.stderr)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_synced(path: Path, content: str | bytes) -> None:
    """Write a file aside, sync and rename it: readers see the old content or the new one, also after a power cut."""
    staging_directory = path.with_name(f".{path.name}.partial")
    staging_directory.write_bytes(content.encode() if isinstance(content, str) else content)
    sync(staging_directory)
    move_into_place(staging_directory, path)


def move_into_place(staging_directory: Path, final: Path) -> None:
    """Rename a file that is written and synced."""
    os.replace(staging_directory, final)
    sync(final.parent)


def sync(path: Path) -> None:
    """Force a file's content, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def package_path(path: str) -> Path:
    """A path from the config; `package:NAME` is NAME inside the installed package."""
    return (
        Path(__file__).resolve().parent / path.removeprefix("package:") if path.startswith("package:") else Path(path)
    )
