"""Files that are there whole or not at all, and JSON files."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from liquid_train.errors import UserError


def is_full(error: BaseException) -> bool:
    """Whether a write failed for lack of room: on the disk, in a quota, under a size limit. Of Rust libraries' errors
    only the text tells."""
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return getattr(error, "errno", None) in numbers or any(f"(os error {n})" in str(error) for n in numbers)


@contextlib.contextmanager
def dispensable(what: str) -> Iterator[None]:
    """Write files that a run can do without: where they cannot be written, one line on stderr says so, and the run
    continues."""
    try:
        yield
    except OSError as error:
        print(f"{what} could not be written: {error}. The run goes on without.", file=sys.stderr)


def read_json(path: Path) -> Any:
    """The content of a JSON file (UTF-8). Raises OSError where it cannot be read, FileNotFoundError where there is
    none, and UserError, with the path, where it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # a UnicodeDecodeError is one too
        raise UserError(f"{path}: not JSON ({error})") from error


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_synced(path: Path, content: str | bytes) -> None:
    """Write a temporary file, sync and rename it: readers see the old content or the new, even after a power cut."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    sync(partial)
    move_into_place(partial, path)


def move_into_place(partial: Path, final: Path) -> None:
    """Rename a file that is written and synced."""
    os.replace(partial, final)
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
