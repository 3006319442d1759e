"""Sources whose inputs are files: which files tokenize.input names, and how their content is identified."""

from __future__ import annotations

import hashlib
import os
from glob import glob
from pathlib import Path
from typing import Any

from braceexpand import braceexpand

from data_prep.settings import TokenizeSettings
from data_prep.source import Source, readable, refuse_unused
from liquid_train.errors import UserError

# Files are identified by their sizes and a hash of their first bytes: HASHED_BYTES over all files, but at least
# HASHED_OF_EACH of every file.
HASHED_BYTES = 2**30
HASHED_OF_EACH = 2**16


class FileSource(Source):
    """A source whose inputs are files; subclasses define which (`suffixes`), and how rows are read."""

    reads_input = True
    suffixes: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()  # which of tokenize.{image_key,text_key,images} this source uses

    def __init__(self, settings: TokenizeSettings, seed: int) -> None:
        super().__init__(settings, seed)
        refuse_unused(settings, self.keys)
        if settings.input is None:
            raise UserError(
                f"tokenize.input has no value: tokenize.source={settings.source} reads files "
                f"({', '.join(self.suffixes)}); give a file, a folder, or a pattern as in shards/{{00000..00099}}.tar"
            )
        self.files = find_files(settings.input, self.suffixes)

    def recipe(self) -> dict[str, Any]:
        options = {key: getattr(self.settings, key) for key in self.keys if getattr(self.settings, key) is not None}
        hashed = max(HASHED_OF_EACH, HASHED_BYTES // len(self.files))
        return {"inputs": {name: identity(path, hashed) for name, path in self.files.items()}, **options}

    def inputs(self) -> list[str]:
        return list(self.files)

    def count(self, name: str) -> int:
        return sum(1 for _ in self.rows_from(name, 0))


def find_files(pattern: str, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Files that tokenize.input names, sorted by name: {path relative to what all of them share: path}.

    A folder stands for all files with one of the suffixes below it. Raises UserError where something is missing or
    nothing is found.
    """
    files: set[Path] = set()
    for part in expand(pattern):
        path = Path(part).expanduser()
        if path.is_dir():
            found = [p for p in path.rglob("*") if p.name.endswith(suffixes) and p.is_file()]
        else:
            found = (
                [path] if path.is_file() else [Path(p) for p in glob(str(path), recursive=True) if Path(p).is_file()]
            )
        if not found:
            what = f"no {', '.join(suffixes)} file in that folder" if path.is_dir() else "no such file or folder"
            raise UserError(f"tokenize.input={part}: {what}")
        files |= {Path(os.path.abspath(p)) for p in found}
    for file in sorted(files):
        if not file.name.endswith(suffixes):
            raise UserError(
                f"tokenize.input={file}: this source reads {', '.join(suffixes)} files; choose another tokenize.source"
            )
    root = os.path.commonpath([p.parent for p in files])
    return dict(sorted((readable(p.relative_to(root).as_posix()), p) for p in files))


def expand(pattern: str) -> list[str]:
    """Braces written out: a{1..2} is a1 and a2; a file whose name has braces is meant as it is."""
    if Path(pattern).expanduser().exists():
        return [pattern]
    try:
        return list(braceexpand(pattern))
    except ValueError as error:
        raise UserError(
            f"tokenize.input={pattern}: a brace without its counterpart, and no file of that name; write "
            f"{{00000..00099}}"
        ) from error


def identity(path: Path, hashed: int) -> dict[str, Any]:
    """Size of a file, and sha256 of its first `hashed` bytes."""
    try:
        with open(path, "rb") as file:
            return {"bytes": path.stat().st_size, "sha256": hashlib.sha256(file.read(hashed)).hexdigest()}
    except OSError as error:
        raise UserError(f"tokenize.input={path}: cannot be read: {error.strerror}") from error
