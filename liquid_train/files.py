"""Files that are there whole or not at all, JSON files, and what is said where nothing can be written."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from liquid_train.errors import UserError

log = logging.getLogger(__name__)
COMMIT = "COMMIT.json"  # of a checkpoint, written last: sizes and hashes of its files
URL = re.compile(r"[a-z][a-z0-9+.-]+:/")
PROBE = b"\0" * 65536  # a full disk may still have room for a name


def lines_of(text: str) -> list[str]:
    """Lines without their ends: \\n alone ends one. (str.splitlines also cuts at U+2028, U+0085 and form feeds, which
    JSON and prompts may hold.)"""
    lines = text.split("\n")
    return lines if lines[-1] else lines[:-1]


def is_full(error: BaseException) -> bool:
    """Whether a write failed for lack of room: on the disk, in a quota, under a size limit. Of Rust libraries' errors
    only the text tells."""
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return getattr(error, "errno", None) in numbers or any(f"(os error {n})" in str(error) for n in numbers)


def concerns(error: OSError, folder: Path) -> bool:
    """Whether an OSError names a file in `folder`. A write that finds the disk full names none by itself: what writes
    there does it in `naming`."""
    names = [str(name) for name in (error.filename, error.filename2) if isinstance(name, str | os.PathLike)]
    return any(Path(name).absolute().is_relative_to(folder.absolute()) for name in names)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Writing `path`: an OSError of the block that names no file names this one."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def check_folder(folder: Path, what: str, remedy: str = "choose another folder") -> None:
    """Try whether `folder` can be made and written to, before the work whose results go there; nothing is left of it.

    what: the setting with its value, for example "run.dir=runs/mine"; remedy: what would be right. Raises UserError.
    """
    if URL.match(str(folder)):  # a Path has lost one of its slashes
        raise UserError(f"{what}: a URL, and this is written to a folder only; {remedy}")
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        link = there.is_symlink() and not there.exists()
        found = f"{there} is a {'link to nothing' if link else 'file, not a folder'}"
        raise UserError(f"{what}: cannot be written to: {found}; {remedy}")
    try:
        with tempfile.NamedTemporaryFile(dir=there, prefix=".liquid-", suffix=".probe") as probe:
            probe.write(PROBE)
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        raise UserError(f"{what}: cannot be written to: {error.strerror or error} ({there}); {remedy}") from error


def check_file(file: Path, what: str, remedy: str = "give another name") -> None:
    """`check_folder` for one file, which may be there already and is replaced then. Raises UserError."""
    if file.is_dir():
        raise UserError(f"{what}: a folder; give the name of a file")
    check_folder(file.parent, what, remedy)


@contextlib.contextmanager
def writing(folder: Path, what: str, remedy: str) -> Iterator[None]:
    """Turn what keeps the block from writing to `folder` into a UserError, as check_folder words it.

    The block must do nothing but write there: a full disk is taken for that of `folder`, whoever raises it.
    """
    try:
        yield
    except Exception as error:  # what Rust libraries raise is no OSError
        if not is_full(error) and not (isinstance(error, OSError) and concerns(error, folder)):
            raise
        why = getattr(error, "strerror", None) or error
        raise UserError(f"{what}: cannot be written to: {why}; {remedy}") from error


@contextlib.contextmanager
def dispensable(what: str) -> Iterator[None]:
    """Write files that a run can do without: where the disk does not take them, a warning says so, and it goes on."""
    try:
        yield
    except OSError as error:
        log.warning("%s could not be written: %s. The run goes on without.", what, error)


def read_json(path: Path) -> Any:
    """The content of a JSON file (UTF-8). Raises OSError where it cannot be read, FileNotFoundError where there is
    none, and UserError, with the path, where it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # a UnicodeDecodeError is one too
        raise UserError(f"{path}: not JSON ({error})") from error


def package_path(path: str) -> Path:
    """A path from the config; `package:NAME` is NAME inside the installed package."""
    if path.startswith("package:"):
        return Path(__file__).resolve().parent / path.removeprefix("package:")
    return Path(path)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_synced(path: Path, content: str | bytes) -> None:
    """Write a temporary file, sync and rename it: readers see the old content or the new, even after a power cut."""
    partial = path.with_name(f".{path.name}.partial")
    with naming(partial):
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
