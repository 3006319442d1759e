"""Builds the index of a folder of tars that has none, by reading every tar once from end to end.

    tars --headers and content--> a row for every sample (sample_table.py) --+ bytes, sha256--> samples.npy, index.json

Such an index cannot name the VQ that made the codes: instead of vq_fingerprint and codebook_size it has `max_code`.
An index.json without samples.npy, as older versions wrote it, is completed and keeps all else that it says.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import tarfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from liquid_train.data.sample_table import SAMPLES_NAME, sample_row, samples_file, to_rows
from liquid_train.data.shard_format import (
    INDEX_KIND,
    INDEX_NAME,
    TAR_ERRORS,
    DamagedSample,
    add_file,
    decode_sample,
    split_name,
)
from liquid_train.data.storage import Folder, LocalFolder, open_folder
from liquid_train.errors import UserError
from liquid_train.files import check_folder

log = logging.getLogger(__name__)

PIECE_BYTES = 8 * 2**20  # one read of a tar
PARTIAL = ".partial"  # present until `liquid tokenize` has finished a folder


def build_index(path: str | Path) -> dict[str, Any]:
    """Write samples.npy and index.json next to the tars at a path or URL that lack one of them; returns the index.

    Raises UserError when both are there already, when nothing there can be trained on, when the tars are not those of
    the index.json, or when the place cannot be written to.
    """
    folder = open_folder(path)
    with _alone(folder):
        older = _older_index(folder)
        if older is not None and _has_samples(folder, older):
            raise UserError(
                f"{path}: has an {INDEX_NAME} with its {SAMPLES_NAME}; remove {INDEX_NAME} first to have both made "
                "anew (a VQ's fingerprint in it is lost then)"
            )
        remedy = f"index a copy that can be, and put its {INDEX_NAME} and {SAMPLES_NAME} next to the tars"
        if isinstance(folder, LocalFolder):
            check_folder(folder.path, str(path), remedy)
        index, rows = read_tars(folder) if older is None else _completed(folder, older)
        try:
            return _write(folder, index, rows)
        except OSError as error:
            raise UserError(f"{path}: cannot be written to ({error.strerror}); {remedy}") from error


def missing_index(folder: Folder) -> tuple[dict[str, Any], list[np.ndarray]]:
    """(index, rows of every tar's samples) of a folder without one, built now, with a warning. If the folder is local
    and writable, they are stored there, and no rows are returned.

    Processes of one machine wait for each other, so that only the first one builds. Raises UserError as build_index
    does.
    """
    with _alone(folder):
        if _has_index(folder):
            return json.loads(folder.read(INDEX_NAME)), []
        start, path = time.monotonic(), folder.path
        index, rows = read_tars(folder)
        kept = f"it is made again at every start: `liquid data index {path}` keeps it"
        if not folder.remote:
            try:
                index, rows = _write(folder, index, rows), []
                kept = "it is kept there now"
            except OSError as error:
                kept = f"it could not be kept there ({error.strerror}); {kept} once that folder can be written to"
        log.warning(
            "%s: %s of %d tars was made in %.1f s; %s",
            path,
            INDEX_NAME,
            len(index["shardlist"]),
            time.monotonic() - start,
            kept,
        )
    return index, rows


def _write(folder: Folder, index: dict[str, Any], rows: list[np.ndarray]) -> dict[str, Any]:
    """Write samples.npy, then index.json, which names it. Raises OSError."""
    content, entry = samples_file(rows)
    folder.write(SAMPLES_NAME, content)
    folder.write(INDEX_NAME, to_text(index | entry))
    return index | entry


def _older_index(folder: Folder) -> dict[str, Any] | None:
    """The index.json that is there. Raises UserError where it is none."""
    if not _has_index(folder):
        return None
    try:
        index = json.loads(folder.read(INDEX_NAME))
        shards = index["shardlist"]
        if index["__kind__"] == INDEX_KIND and all({"url", "nsamples", "bytes", "sha256"} <= set(s) for s in shards):
            return dict(index)
    except (ValueError, TypeError, KeyError):
        pass
    raise UserError(f"{folder.path}/{INDEX_NAME}: not a shard index; remove it first to have one made")


def _has_samples(folder: Folder, index: dict[str, Any]) -> bool:
    recorded = index.get("samples")
    return isinstance(recorded, dict) and folder.sizes([SAMPLES_NAME]) == {SAMPLES_NAME: recorded.get("bytes")}


def _completed(folder: Folder, index: dict[str, Any]) -> tuple[dict[str, Any], list[np.ndarray]]:
    """An index without rows, and the rows of its tars. Raises UserError where a tar is not the one it was made of."""
    found, rows = [], []
    for entry in index["shardlist"]:
        try:
            shard, own = _read_tar(folder, entry["url"], entry["bytes"], Content())
        except OSError as error:
            raise UserError(f"{folder.path}/{entry['url']}: cannot be read: {error.strerror or error}") from error
        if any(shard[name] != entry[name] for name in ("nsamples", "sha256")):
            raise UserError(
                f"{folder.path}/{entry['url']}: not the tar that {INDEX_NAME} was made of: `liquid data verify` says "
                f"more; remove {INDEX_NAME} to have one made of the tars as they are"
            )
        found.append({name: value for name, value in entry.items() if name != "chunks"})
        rows.append(own)
    return {**index, "shardlist": found}, rows


def to_text(index: dict[str, Any]) -> bytes:
    return json.dumps(index, sort_keys=True, ensure_ascii=False, indent=1).encode()


def read_tars(folder: Folder) -> tuple[dict[str, Any], list[np.ndarray]]:
    """(index, rows of every tar's samples) of a folder, the same for the same tars. Raises UserError when none of their
    samples can be used."""
    tars, path = folder.tars(), folder.path
    if not tars:
        raise UserError(f"{path}: no {INDEX_NAME} there, and no tars: not a shard set; `liquid tokenize` makes one")
    content = Content()
    try:
        sizes = folder.sizes(tars)
        log.warning(
            "%s: no %s there: it is made now, %d tars are read once (%.1f GiB)",
            path,
            INDEX_NAME,
            len(tars),
            sum(filter(None, sizes.values())) / 2**30,
        )
        read = [_read_tar(folder, name, sizes.get(name), content) for name in tars]
    except OSError as error:
        raise UserError(f"{path}: no {INDEX_NAME} there, and its tars cannot be read: {error}") from error
    except UserError as error:
        raise UserError(f"{path}: no {INDEX_NAME} there, and none can be made: {error}") from error
    if not content.images + content.texts:
        why = ", ".join(f"{reason}: {n:,}" for reason, n in content.bad.most_common(3)) or "they are empty"
        raise UserError(
            f"{path}: no sample in its {len(tars)} tars has codes or text that can be used ({why}); `liquid "
            "tokenize` makes such tars"
        )
    if content.bad:
        log.warning("%s: samples that cannot be used: %s", path, dict(content.bad))
    images = {"max_code": content.max_code} if content.images else {}
    shards, rows = [entry for entry, _ in read], [own for _, own in read]
    totals = {"samples": sum(s["nsamples"] for s in shards), "images": content.images, "texts": content.texts}
    index = {
        "__kind__": INDEX_KIND,
        "wids_version": 1,
        "name": str(path).rpartition("/")[2],
        "shardlist": shards,
        "totals": totals,
        **images,
    }
    return index, rows


@dataclass
class Content:
    """What the samples hold: images with codes, texts without, and why others cannot be used."""

    images: int = 0
    texts: int = 0
    max_code: int = 0
    bad: Counter[str] = field(default_factory=Counter)

    def add(self, tar: str, offset: int, key: str, files: dict[str, bytes]) -> tuple[int, ...]:
        """Count a sample; its row. The first one of a reason is named."""
        try:
            sample = decode_sample(key, files)
        except DamagedSample as error:
            if not self.bad[str(error)]:
                log.warning("%s, sample %s: cannot be used: %s", tar, key, error)
            self.bad[str(error)] += 1
            return sample_row(offset, key, {}, None, None)
        codes = sample.get("codes")
        if codes is not None:
            self.images += 1
            self.max_code = max(self.max_code, int(codes.max()))
        else:
            self.texts += 1
        return sample_row(offset, key, sample["info"], sample.get("text"), codes)


class HashedFile:
    """A file as a stream for tarfile's stream mode: read once, in pieces, and hashed on the way."""

    def __init__(self, folder: Folder, name: str, size: int) -> None:
        self.folder, self.name, self.size = folder, name, size
        self.sha256 = hashlib.sha256()
        self._position = 0  # of the next piece
        self._rest = memoryview(b"")  # of the current piece

    def read(self, count: int) -> bytes:
        if not self._rest and self._position < self.size:
            piece = self.folder.read(self.name, self._position, min(self.size, self._position + PIECE_BYTES))
            if not piece:
                raise UserError(f"{self.name} became shorter while it was read")
            self._position += len(piece)
            self.sha256.update(piece)
            self._rest = memoryview(piece)
        part, self._rest = self._rest[:count], self._rest[count:]
        return bytes(part)


def tar_rows(folder: Folder, name: str, samples: int) -> np.ndarray:
    """The rows of a tar's samples. Raises OSError, and UserError where it has not as many as said."""
    rows = _read_tar(folder, name, folder.sizes([name]).get(name), Content())[1]
    if len(rows) != samples:
        raise UserError(f"{folder.path}/{name}: {len(rows):,} samples, its record says {samples:,}; tokenize it again")
    return rows


def _read_tar(folder: Folder, name: str, size: int | None, content: Content) -> tuple[dict[str, Any], np.ndarray]:
    """A tar's entry in the index, and the rows of its samples. Raises UserError when the size is unknown, or the files
    of a sample are not adjacent."""
    if size is None:
        raise UserError(f"{name}: its size is not told by the server")
    file = HashedFile(folder, name, size)
    where = f"{folder.path}/{name}"
    rows = to_rows([content.add(where, offset, key, files) for offset, key, files in _samples(file, name)])
    while file.read(PIECE_BYTES):
        pass  # the hash is of the whole file, whatever follows the last sample
    return {"url": name, "nsamples": len(rows), "bytes": size, "sha256": file.sha256.hexdigest()}, rows


def _samples(file: HashedFile, name: str) -> Iterator[tuple[int, str, dict[str, bytes]]]:
    """(byte offset, key, files) of every sample of a tar."""
    seen: set[str] = set()
    offset, key, files = 0, None, dict[str, bytes]()
    for at, member_name, data in _members(file):
        member_key, extension = split_name(member_name)
        if member_key != key:
            if key is not None:
                yield offset, key, files
            if member_key in seen:
                raise UserError(
                    f"{name}: the files of sample {member_key} do not follow one another; pack the tar again with "
                    "`tar --sort=name`"
                )
            seen.add(member_key)
            offset, key, files = at, member_key, {}
        add_file(files, extension, data)
    if key is not None:
        yield offset, key, files


def _members(file: HashedFile) -> Iterator[tuple[int, str, bytes]]:
    """(byte offset of the header, name, content) of every plain file, as far as the tar can be read."""
    try:
        with tarfile.open(fileobj=file, mode="r|", ignore_zeros=True) as tar:  # type: ignore[call-overload]  # a stream needs no more than read
            while (member := tar.next()) is not None:
                tar.members = []  # tarfile would keep every header
                content = tar.extractfile(member) if member.isreg() else None
                if content is not None:
                    yield member.offset, member.name, content.read()
    except TAR_ERRORS as error:
        log.warning("%s: the tar ends early: %s", file.name, error)


def _has_index(folder: Folder) -> bool:
    return INDEX_NAME in folder.sizes([INDEX_NAME])


@contextmanager
def _alone(folder: Folder) -> Iterator[None]:
    """Lets one process of this machine build at a time. The lock is on the folder itself, so that no file is left."""
    begun = f"{PARTIAL}/plan.json"
    if (folder.path / PARTIAL).is_dir() if isinstance(folder, LocalFolder) else folder.sizes([begun]):
        raise UserError(f"{folder.path}: no {INDEX_NAME} there: not finished; run `liquid tokenize` again to finish it")
    if not isinstance(folder, LocalFolder):
        yield
        return
    try:
        descriptor = os.open(folder.path, os.O_RDONLY)
    except OSError as error:
        raise UserError(
            f"{folder.path}: cannot be read: {error.strerror}; `liquid tokenize` makes a shard set"
        ) from error
    try:
        # some network file systems cannot lock folders: then all build, and write the same
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
