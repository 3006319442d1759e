"""Sources whose inputs are files: which files tokenize.input names, and how their content is identified."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from glob import glob
from pathlib import Path
from typing import Any

from braceexpand import braceexpand

from data_prep.file_walk import DANGLING, LINKED_TWICE, FoundFile, walk_files
from data_prep.remote_input import RemoteFiles, RemotePath, is_url
from data_prep.settings import TokenizeSettings
from data_prep.source import DAMAGED, Source, Survey, refuse_unused
from liquid_train.errors import UserError
from liquid_train.text_normalizer import normalize_text

# Files are identified by their sizes and a hash of their first bytes: HASHED_BYTES over all files, but at least
# HASHED_OF_EACH of every file. Of a file that is longer, the time of its last change counts as well.
HASHED_BYTES = 2**30
HASHED_OF_EACH = 2**16
# Version of which rows these sources make of a file, part of the recipe: a set in which captions were lost is no longer
# "complete already" once they are read.
READING = 2
MAX_SUFFIX = 9  # characters, as .parquet has with its dot: a longer one is a part of a name


class FileSource(Source):
    """A source whose inputs are files; subclasses define which (`suffixes`, in lower case), and how rows are read."""

    reads_input = True
    suffixes: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()  # which of tokenize.{image_key,text_key,images,tokenizer,keep} this source uses

    def __init__(self, settings: TokenizeSettings, seed: int) -> None:
        super().__init__(settings, seed)
        refuse_unused(settings, self.keys)
        if settings.input is None:
            raise UserError(
                f"tokenize.input has no value: tokenize.source={settings.source} reads files "
                f"({', '.join(self.suffixes)}); give a file, a folder, or a pattern as in shards/{{00000..00099}}.tar"
            )
        self._omitted = Counter[str]()
        self.files: Mapping[str, Path]
        if is_url(settings.input):
            self.files = RemoteFiles(expand(settings.input), self.suffixes, self._omitted)
        else:
            self.files = find_files(settings.input, self.suffixes, self._omitted)
        images = settings.images
        if images is not None and not is_url(images) and not Path(images).expanduser().is_dir():
            raise UserError(
                f"tokenize.images={settings.images}: no such folder; paths of images in the list are taken from there"
            )

    def recipe(self) -> dict[str, Any]:
        options = {key: getattr(self.settings, key) for key in self.keys if getattr(self.settings, key) is not None}
        if isinstance(self.files, RemoteFiles):
            inputs = {name: self.files.identity(name) for name in self.files}
        else:
            hashed = max(HASHED_OF_EACH, HASHED_BYTES // len(self.files))
            inputs = {name: identity(path, hashed) for name, path in self.files.items()}
        return {"inputs": inputs, "reading": READING, **options}

    def images_folder(self, name: str) -> Path | RemotePath:
        """What paths of images in an input are relative to."""
        images = self.settings.images
        if images is not None:
            return RemotePath(images) if is_url(images) else Path(images).expanduser()
        if isinstance(self.files, RemoteFiles):
            return RemotePath(self.files.url(name).rpartition("/")[0])
        return self.files[name].parent

    def places(self) -> list[Path | str]:
        if isinstance(self.files, RemoteFiles):
            return [*expand(self.settings.input or ""), *map(self.files.url, self.files)]
        named = [Path(part).expanduser() for part in expand(self.settings.input or "")]
        return [*filter(Path.is_dir, named), *self.files.values()]

    def inputs(self) -> list[str]:
        return list(self.files)

    def count(self, name: str) -> int:
        return self.survey(name).rows

    def survey(self, name: str) -> Survey:
        """Its rows are read once; subclasses that know a cheaper way do not."""
        rows, damage = 0, None
        for row in self.rows_from(name, 0):
            rows += 1
            if row.problem == DAMAGED and damage is None:
                damage = row.origin
        return Survey(rows, damage=damage)

    def omitted(self) -> Counter[str]:
        return self._omitted


def find_files(pattern: str, suffixes: tuple[str, ...], omitted: Counter[str]) -> dict[str, Path]:
    """Files that tokenize.input names, sorted by name: {path relative to what all of them share: path}.

    A folder stands for all files with one of the suffixes below it; the others are counted in `omitted`, as is a
    further name of one file. Raises UserError where something is missing or nothing is found.
    """
    files: dict[str, Path] = {}  # by what they really are
    for part in expand(pattern):
        path = Path(part).expanduser()
        if path.is_dir():
            found = []
            for file in walk_files(path, omitted):
                if file.path.name.lower().endswith(suffixes):
                    found.append(file.path)
                else:
                    omitted[other_kind(file)] += 1
        else:
            found = [path] if path.is_file() else [p for p in matching(str(path), omitted) if p.is_file()]
        if not found:
            raise UserError(f"tokenize.input={part}: {_nothing_found(path, suffixes, omitted)}")
        for named in sorted({Path(os.path.abspath(p)) for p in found}):
            if files.setdefault(os.path.realpath(named), named) != named:
                omitted[LINKED_TWICE] += 1
    for named in sorted(files.values()):
        if not named.name.lower().endswith(suffixes):
            raise UserError(
                f"tokenize.input={named}: this source reads {', '.join(suffixes)} files; choose another tokenize.source"
            )
    root = os.path.commonpath([p.parent for p in files.values()])
    by_name: dict[str, Path] = {}
    for named in sorted(files.values()):
        name = normalize_text(named.relative_to(root).as_posix())
        if name in by_name:  # two that differ only in bytes that are no UTF-8
            name = os.fsencode(named.relative_to(root)).decode("utf-8", "backslashreplace")
        by_name[name] = named
    return dict(sorted(by_name.items()))


def matching(pattern: str, omitted: Counter[str]) -> Iterator[Path]:
    """What a pattern stands for; ** is any folder below, of which links to folders are followed as in walk_files (glob
    would go round in circles of them)."""
    before, recursive, rest = pattern.partition("**/")
    if not recursive or "**" in rest or (before and not before.endswith("/")):
        yield from map(Path, glob(pattern, recursive=True))
        return
    for folder in glob(before) if before else ["."]:
        if os.path.isdir(folder):
            yield from (file.path for file in walk_files(Path(folder), omitted) if file.path.match(rest))


def other_kind(file: FoundFile) -> str:
    """Under which reason a file is counted that the source does not read."""
    suffix = file.path.suffix.lower()
    if file.dangling:  # perhaps a folder of a disk that is away
        return DANGLING
    return f"{suffix} file" if suffix[1:].isalnum() and len(suffix) <= MAX_SUFFIX else "other file"


def _nothing_found(path: Path, suffixes: tuple[str, ...], omitted: Counter[str]) -> str:
    if not path.is_dir():
        return "no such file or folder"
    others = f"; it has {', '.join(f'{reason}: {n:,}' for reason, n in omitted.most_common(4))}" if omitted else ""
    return f"no {', '.join(suffixes)} file in that folder{others}"


def expand(pattern: str) -> list[str]:
    """Braces written out: a{1..2} is a1 and a2; a file whose name has braces is meant as it is."""
    if not is_url(pattern) and Path(pattern).expanduser().exists():
        return [pattern]
    try:
        return list(braceexpand(pattern))
    except ValueError as error:
        raise UserError(
            f"tokenize.input={pattern}: a brace without its counterpart, and no file of that name; write "
            f"{{00000..00099}}"
        ) from error


def identity(path: Path, hashed: int) -> dict[str, Any]:
    """Size of a file, and sha256 of its first `hashed` bytes; for a longer one, when it was modified (ns)."""
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            modified = {"modified": status.st_mtime_ns} if status.st_size > hashed else {}
            return {"bytes": status.st_size, "sha256": hashlib.sha256(file.read(hashed)).hexdigest(), **modified}
    except OSError as error:
        raise UserError(f"tokenize.input={path}: cannot be read: {error.strerror}") from error
