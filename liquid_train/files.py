"""Files that are there whole or not at all, and how their content is told."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_synced(path: Path, content: str | bytes) -> None:
    """Write a file aside, sync and rename it: readers see the old content or the new one, also after a power cut."""
    aside = path.with_name(f".{path.name}.partial")
    aside.write_bytes(content.encode() if isinstance(content, str) else content)
    sync(aside)
    move_into_place(aside, path)


def move_into_place(aside: Path, final: Path) -> None:
    """Rename a file that is written and synced."""
    os.replace(aside, final)
    sync(final.parent)


def sync(path: Path) -> None:
    """Force a file's content, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
