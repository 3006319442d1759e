"""samples.npy next to index.json: what is known of every sample of a set, 32 bytes each, in the order of the tars.

index.json names the file under `samples`, with its size, sha256 and fields. It is a plain one-dimensional numpy array:
np.load(..., mmap_mode="r") opens it. Readers take the rows that they need by byte range, from a folder or a URL, so
that a set of any size costs no memory.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import zlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from liquid_train.errors import UserError
from liquid_train.files import move_into_place

SAMPLES_NAME = "samples.npy"
FIELDS = [
    ["offset", "<u8"],  # of its first header in its tar, in bytes
    ["key", "<u8"],  # key_hash of its key
    ["characters", "<u4"],  # of KEY.txt
    ["rows", "<u2"],  # of its grid of codes; 0 for a text
    ["columns", "<u2"],
    ["captions", "<u2"],  # wordings that its caption is drawn from
    ["questions", "<u2"],
    ["messages", "<u2"],
    ["parts", "<u2"],  # texts and images of an interleaved document
]
ROW = np.dtype([(name, kind) for name, kind in FIELDS])
NEEDED = {"offset", "key", "rows", "columns", "captions", "questions"}  # what readers use


def key_hash(key: str) -> int:
    """8 bytes of a key's blake2b: two keys of a hundred million share one with a probability of 0.0003."""
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest())


def sample_row(
    offset: int, key: str, info: dict[str, Any], text: str | None, codes: np.ndarray | None
) -> tuple[int, ...]:
    """One sample's fields, in the order of FIELDS; what does not fit a field is its largest number."""
    grid = (0, 0) if codes is None else codes.shape[:2]
    counts = [_length(info, name) for name in ("captions", "questions", "messages", "parts")]
    counts[0] = counts[0] or int(text is not None)
    return (offset, key_hash(key), min(len(text or ""), 2**32 - 1), *(min(n, 2**16 - 1) for n in (*grid, *counts)))


def _length(info: dict[str, Any], name: str) -> int:
    value = info.get(name)
    return len(value) if isinstance(value, list) else 0


def to_rows(found: list[tuple[int, ...]]) -> np.ndarray:
    """sample_rows as an array of ROW [n]."""
    return np.array(found, ROW)


def pack_rows(rows: np.ndarray) -> str:
    """Rows as text, for a JSON record: about half their size."""
    return base64.b64encode(zlib.compress(rows.tobytes(), 1)).decode()


def unpack_rows(packed: str) -> np.ndarray:
    """What pack_rows has made."""
    return np.frombuffer(zlib.decompress(base64.b64decode(packed)), ROW)


def write_samples(folder: Path, shards: Iterable[np.ndarray], count: int) -> dict[str, Any]:
    """Write the rows of all shards in order, `count` together, and return what index.json says of them: `samples`, and
    `grids` [[rows, columns, images], ...].

    The file is written aside, synced and renamed; one shard's rows are in memory at a time.
    """
    aside = folder / f".{SAMPLES_NAME}.{uuid4().hex}.partial"
    digest, grids = hashlib.sha256(), Counter[tuple[int, int]]()
    try:
        with open(aside, "wb") as file:
            for content in _pieces(shards, count, grids):
                file.write(content)
                digest.update(content)
            size = file.tell()
            file.flush()
            os.fsync(file.fileno())
        move_into_place(aside, folder / SAMPLES_NAME)
    finally:
        aside.unlink(missing_ok=True)
    return _entry(size, digest.hexdigest(), grids)


def samples_file(shards: list[np.ndarray]) -> tuple[bytes, dict[str, Any]]:
    """The file's content, and what index.json says of it, as write_samples."""
    grids = Counter[tuple[int, int]]()
    content = b"".join(_pieces(shards, sum(map(len, shards)), grids))
    return content, _entry(len(content), hashlib.sha256(content).hexdigest(), grids)


def _pieces(shards: Iterable[np.ndarray], count: int, grids: Counter[tuple[int, int]]) -> Iterable[bytes]:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": np.lib.format.dtype_to_descr(ROW), "fortran_order": False, "shape": (count,)}
    )
    yield header.getvalue()
    for rows in shards:
        count -= len(rows)
        pairs, images = np.unique(rows["rows"].astype(int) << 16 | rows["columns"], return_counts=True)
        grids.update({divmod(int(pair), 2**16): int(n) for pair, n in zip(pairs, images, strict=True) if pair})
        yield rows.tobytes()
    assert count == 0, "the shards have other samples than their entries say"


def _entry(size: int, digest: str, grids: Counter[tuple[int, int]]) -> dict[str, Any]:
    return {
        "samples": {"url": SAMPLES_NAME, "bytes": size, "sha256": digest, "fields": FIELDS},
        "grids": [[*grid, images] for grid, images in sorted(grids.items())],
    }


def row_type(entry: dict[str, Any], count: int, where: str) -> np.dtype[Any]:
    """The type of the rows that an index.json's `samples` names, `count` of them. Raises UserError for what this
    version cannot read."""
    try:
        kind = np.dtype([(str(name), str(form)) for name, form in entry["fields"]])
        good = set(kind.names or ()) >= NEEDED and not kind.hasobject and Path(entry["url"]).name == entry["url"]
        good = good and entry["bytes"] - count * kind.itemsize > 0 and isinstance(entry["sha256"], str)
    except (KeyError, TypeError, ValueError, AttributeError):
        good = False
    if not good:
        raise UserError(
            f"{where}: `samples` does not describe {count:,} rows that this version can read; `liquid data index` "
            "makes them anew"
        )
    return kind


def image_lengths(index: dict[str, Any]) -> list[tuple[int, int, int]]:
    """(rows, columns, images) of a set's grids. Where its index does not say: one row of the mean number of codes."""
    if "grids" in index:
        return [(int(rows), int(columns), int(images)) for rows, columns, images in index["grids"]]
    totals = index.get("totals", {})
    images, codes = totals.get("images", 0), totals.get("image_codes", 0)
    return [(1, codes // images, images)] if images and codes else []
