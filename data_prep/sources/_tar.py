"""Samples of a webdataset tar, one after the other: of which files each is made, and where the tar is damaged."""

from __future__ import annotations

import errno
import tarfile
from collections import Counter
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path

from data_prep.file_walk import HIDDEN, is_hidden
from data_prep.source import DAMAGED
from liquid_train.data.shard_format import split_name

SECOND = "a second sample of this key"
NO_SAMPLE = "file of no sample"
NO_FILE = "a link in the tar, or another thing that is no plain file"

# What tarfile raises for a damaged header: its numbers can ask for any amount of memory, or lead before the file.
TAR_ERRORS = (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, MemoryError)
BLOCK = tarfile.BLOCKSIZE
BLOCKS_AT_ONCE = 2048

Files = dict[str, bytes]  # extension -> content of one sample


class CutOff(EOFError):
    """The tar breaks off in the content of a file."""


def samples(
    path: Path, start: int, *, content: bool, omitted: Counter[str] | None = None
) -> Iterator[tuple[str, Files | str]]:
    """(key, files, or why the sample cannot be used) of the samples from number `start` on.

    content=False: names only, nothing is read but the headers. Hidden files, and those without a suffix, are counted in
    `omitted`. A tar that breaks off or is damaged ends with ("", DAMAGED): for the sample in which it breaks and for
    each that can still be seen behind it. Raises OSError where it cannot be read now.
    """
    collected = _Collected(start)
    usual: set[str] | None = None  # extensions of the sample before
    position = 0
    try:
        with tarfile.open(path, "r:") as tar:
            for key, extension, member in headers(tar, omitted):
                position = tar.offset
                if collected.is_another(key, extension):
                    usual = set(collected.files)
                    yield from collected.end()
                    collected.begin(key)
                if member is None:
                    collected.files = {}
                    raise CutOff
                wanted = content and collected.number >= start
                collected.add(extension, member, _content(tar, member) if wanted and is_plain(member) else b"")
            yield from collected.end()
        return
    except TAR_ERRORS as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # a disk or a network that fails
            raise
    lost, begun = keys_behind(path, position), {collected.key} if collected.key is not None else set()
    if usual is None or usual == set(collected.files):
        yield from collected.end()
        lost -= begun
    else:  # more of its files may lie behind the damage
        lost |= begun
    yield from list(repeat(("", DAMAGED), max(1, len(lost))))[max(0, start - collected.number) :]


class _Collected:
    """The files of one sample after the other. Keys are remembered by their hashes: 60 bytes each."""

    def __init__(self, start: int) -> None:
        self.start, self.number = start, 0
        self.key: str | None = None
        self.files: Files = {}
        self._problem: str | None = None
        self._seen: set[int] = set()

    def is_another(self, key: str, extension: str) -> bool:
        """Whether a file begins another sample: one of another key, or again of this one."""
        return key != self.key or extension in self.files

    def begin(self, key: str) -> None:
        self.key, self.files = key, {}
        self._problem = SECOND if hash(key) in self._seen else None
        self._seen.add(hash(key))

    def add(self, extension: str, member: tarfile.TarInfo, content: bytes) -> None:
        self.files[extension] = content
        if not is_plain(member):
            self._problem = self._problem or NO_FILE

    def end(self) -> Iterator[tuple[str, Files | str]]:
        if self.key is None or not self.files:
            return
        self.number += 1
        if self.number > self.start:
            yield self.key, self._problem or self.files


def headers(
    tar: tarfile.TarFile, omitted: Counter[str] | None = None
) -> Iterator[tuple[str, str, tarfile.TarInfo | None]]:
    """(key, extension, header) of the files of a tar one after the other; None in place of a header whose file breaks
    off. Archives that were put one behind the other are read as one.

    As in webdataset, the key ends at the first dot of the base name; a file without a key or an extension is of no
    sample. Raises one of TAR_ERRORS for a header that is damaged and for a tar without an end.
    """
    size = Path(str(tar.name)).stat().st_size
    while True:
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # not in the stubs; tarfile would keep every header
            if member.isdir():
                continue
            key, extension = split_name(member.name)
            hidden = any(map(is_hidden, member.name.removeprefix("./").split("/")))
            if hidden or not (key.rpartition("/")[2] and extension):
                if omitted is not None:
                    omitted[HIDDEN if hidden else NO_SAMPLE] += 1
                continue
            cut = is_plain(member) and member.offset_data + member.size > size
            yield key, extension.lower(), None if cut else member
        if not another_archive(tar):
            return


def another_archive(tar: tarfile.TarFile) -> bool:
    """Whether another archive follows the end of one, where `tar` then stands. Raises ReadError where there is no
    end."""
    file = tar.fileobj
    assert file is not None
    file.seek(tar.offset)
    at = tar.offset
    # tarfile takes any other block for the end, too
    if file.read(BLOCK) != tarfile.NUL * BLOCK:
        raise tarfile.ReadError("a damaged header, or no end")
    at += BLOCK
    while blocks := file.read(BLOCK * BLOCKS_AT_ONCE):
        content = blocks.lstrip(tarfile.NUL)
        if content:
            tar.offset = at + (len(blocks) - len(content)) // BLOCK * BLOCK
            return True
        at += len(blocks)
    return False


def keys_behind(path: Path, position: int) -> set[str]:
    """Keys of the samples whose headers can be seen behind the damage at `position`, in bytes."""
    keys: set[str] = set()
    with open(path, "rb") as file:
        file.seek(position)
        while blocks := file.read(BLOCK * BLOCKS_AT_ONCE):
            for at in range(0, len(blocks) - BLOCK + 1, BLOCK):
                if blocks[at + 257 : at + 262] != b"ustar":
                    continue
                try:
                    member = tarfile.TarInfo.frombuf(blocks[at : at + BLOCK], "utf-8", "surrogateescape")
                except tarfile.HeaderError:
                    continue
                key, extension = split_name(member.name)
                if key.rpartition("/")[2] and extension and is_plain(member):
                    keys.add(key)
    return keys


def is_plain(member: tarfile.TarInfo) -> bool:
    return member.isreg() and not member.issparse()


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None
    return file.read()
