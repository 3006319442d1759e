"""Reading a shard set: plain webdataset tars, and the index.json and samples.npy next to them.

    samples first .. first + count --offsets of samples.npy--> one byte range of each tar --one by one--> samples

samples.npy holds the byte offset of every sample, so that any process reaches any range of samples with one read, from
a folder or a URL, and decodes only those that are asked for. A set of an older version has none: there the chunks of
its index.json (256 samples each, or a whole tar) that cover the range are read, and searched for their samples.
A ShardSet keeps no file open and can be pickled.
"""

from __future__ import annotations

import hashlib
import logging
import tarfile
from collections import Counter, OrderedDict
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from liquid_train.data.chunk_cache import ChunkCache
from liquid_train.data.chunk_search import split_samples
from liquid_train.data.damage import DamageLog
from liquid_train.data.outage import RETRY_SECONDS, cannot_be_read
from liquid_train.data.sample_table import key_hash, row_type
from liquid_train.data.shard_format import (
    INDEX_NAME,
    DamagedSample,
    Sample,
    decode_sample,
    group_files,
)
from liquid_train.data.shard_index import Shard, open_index
from liquid_train.data.storage import open_folder
from liquid_train.errors import UserError

log = logging.getLogger(__name__)

BLOCK = 256  # samples that are read together where they are asked for one at a time, or all in order
CACHED_BLOCKS = 8
SCANNED_ROWS = 2**16  # of samples.npy at a time, 2 MiB
CACHED_CHUNKS = 128  # of a set without samples.npy, where several ranges may need the same chunk
DAMAGED_TAR = "damaged tar"


class ShardSet:
    """A folder of shards, opened by its index. `path` may be an fsspec URL; `cache` keeps byte ranges that were read
    from one.

    num_samples, shards: in order. digest: sha256 over the shards' digests. fingerprint, codebook_size: of the VQ that
    made the codes; None for a set of texts. damage: damaged samples met so far, each noted once.
    retry_seconds: for how long a read that fails and may pass is tried again; None: ten minutes after a URL, for tools
    on a local folder not at all.
    A folder of tars without an index gets one first (index_builder.py); its codes are taken to be of the VQ asked for.
    Raises UserError when there is no such folder or index, or the codes are of another VQ than the one asked for.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        vq_fingerprint: str | None = None,
        codebook_size: int | None = None,
        cache: ChunkCache | None = None,
        retry_seconds: float | None = None,
    ) -> None:
        self._folder = open_folder(path)
        self._cache = cache if self._folder.remote else None
        self.path = self._folder.path
        self.index, self._built = open_index(self._folder)
        self.name: str = self.index["name"]
        self.shards: list[Shard] = self.index.pop("shardlist")
        self.fingerprint: str | None = self.index.get("vq_fingerprint")
        self.codebook_size: int | None = self.index.get("codebook_size")
        self._ends = np.cumsum([shard.nsamples for shard in self.shards], dtype=np.int64)
        self.num_samples = int(self._ends[-1]) if self.shards else 0
        self.digest = hashlib.sha256("".join(shard.sha256 for shard in self.shards).encode()).hexdigest()
        self._row = self._row_type()
        self.damage = DamageLog(str(self.path))
        usual = RETRY_SECONDS if self._folder.remote else 0.0
        self._folder.patience = usual if retry_seconds is None else retry_seconds
        self._blocks: OrderedDict[int, SampleRange] = OrderedDict()
        self._chunks: OrderedDict[tuple[int, int], list[bytes]] = OrderedDict()
        self._check_vq(vq_fingerprint, codebook_size)

    @property
    def bad(self) -> Counter[str]:
        """Damaged samples met so far by this process, by reason."""
        return self.damage.by_reason

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_blocks": OrderedDict(), "_chunks": OrderedDict()}

    def _row_type(self) -> np.dtype[Any] | None:
        """The type of the rows of samples.npy; None for a set of an older version."""
        if "samples" in self.index:
            return row_type(self.index["samples"], self.num_samples, f"{self.path}/{INDEX_NAME}")
        if self._built is None and self.num_samples:
            log.info(
                "%s: of an older version, read by whole chunks: `liquid data index %s` makes reading it faster",
                self.path,
                self.path,
            )
        return None

    def _check_vq(self, fingerprint: str | None, codebook_size: int | None) -> None:
        remedy = (
            "tokenize the images again with `liquid tokenize` and that VQ, or give the VQ that made these codes "
            "(vq.config, vq.checkpoint)"
        )
        if self.fingerprint is None:
            self._check_unknown_vq(fingerprint, codebook_size, remedy)
            return
        if fingerprint and fingerprint != self.fingerprint:
            raise UserError(
                f"{self.path}: codes of another VQ: fingerprint {self.fingerprint[:16]} here, {fingerprint[:16]} "
                f"asked for; {remedy}"
            )
        if codebook_size and codebook_size != self.codebook_size:
            raise UserError(
                f"{self.path}: codes of a codebook of {self.codebook_size}, {codebook_size} asked for; {remedy}"
            )

    def _check_unknown_vq(self, fingerprint: str | None, codebook_size: int | None, remedy: str) -> None:
        """For an index that was built from the tars: only the range of the codes can be checked."""
        highest = self.index.get("max_code")
        if highest is None:
            return
        self.codebook_size = codebook_size
        if codebook_size and highest >= codebook_size:
            raise UserError(
                f"{self.path}: codes up to {highest}, beyond the codebook of {codebook_size} that is asked for; "
                f"{remedy}"
            )
        if fingerprint or codebook_size:
            log.warning(
                "%s: %s was made from the tars and names no VQ: that the codes (up to %d) are of this one cannot be "
                "checked",
                self.path,
                INDEX_NAME,
                highest,
            )

    @property
    def ids_fingerprint(self) -> str | None:
        """The fingerprint of the tokenizer that made its token ids (tokenize.source=ids); None for other sets."""
        source: dict[str, Any] = self.index.get("recipe", {}).get("source", {})
        return source.get("tokenizer_fingerprint")

    @property
    def multiratio_sizes(self) -> list[tuple[int, int]]:
        """Width and height in pixels of the sizes that its images were fitted to (tokenize.crop=multiratio); empty for
        other sets."""
        crop = self.index.get("recipe", {}).get("crop", {})
        return [(int(width), int(height)) for width, height in crop.get("sizes", ())]

    def usual_grid(self) -> tuple[int, int] | None:
        """(rows, columns) of the codes of most of its images, as its index says; of a set of an older version those of
        its first image. None for a set without images."""
        if "grids" in self.index:
            grids = {(int(rows), int(columns)): int(images) for rows, columns, images in self.index["grids"]}
            return max(grids, key=lambda grid: (grids[grid], grid)) if grids else None
        if not self.index.get("totals", {}).get("images", True):
            return None
        return next((sample["codes"].shape[:2] for sample in self if "codes" in sample), None)

    def check_files(self) -> None:
        """Raise UserError for the first file of the index that is missing or has another size.

        Over http, where folders cannot be listed, 64 tars of a larger set are checked, and that the server sends byte
        ranges.
        """
        files = {shard.url: shard.bytes for shard in self.shards}
        again = dict.fromkeys(files, "`liquid tokenize`")
        if "samples" in self.index:
            files[self.index["samples"]["url"]] = self.index["samples"]["bytes"]
        try:
            sizes = self._folder.sizes(list(files))
            for name, expected in files.items():
                made = again.get(name, f"`liquid data index {self.path}`")
                if name not in sizes:
                    raise UserError(
                        f"{self.path}/{name}: missing, though {INDEX_NAME} lists it; copy the whole folder, or run "
                        f"{made} again to make it"
                    )
                if sizes[name] is not None and sizes[name] != expected:
                    raise UserError(
                        f"{self.path}/{name}: {sizes[name]:,} bytes, {INDEX_NAME} says {expected:,}; run {made} again "
                        "to repair it"
                    )
            if self._folder.remote and self.shards:
                self._folder.read(self.shards[0].url, 0, tarfile.BLOCKSIZE)
        except OSError as error:
            raise UserError(f"{self.path}: its tars cannot be read: {error}") from error

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[Sample]:
        """All samples in order, without the damaged ones."""
        for first in range(0, self.num_samples, BLOCK):
            block = self.read(first, min(BLOCK, self.num_samples - first))
            yield from (sample for i in range(len(block)) if (sample := block[i]) is not None)

    def sample(self, n: int) -> Sample | None:
        """Sample number `n` of the set, None where it is damaged. Raises IndexError beyond the set."""
        if not 0 <= n < self.num_samples:
            raise IndexError(f"{self.path}: sample {n} of {self.num_samples}")
        number = n // BLOCK
        block = self._blocks.pop(number, None) or self.read(
            number * BLOCK, min(BLOCK, self.num_samples - number * BLOCK)
        )
        self._blocks[number] = block
        if len(self._blocks) > CACHED_BLOCKS:
            self._blocks.popitem(last=False)
        return block[n - number * BLOCK]

    def shard_of(self, n: int) -> Shard:
        """The tar that sample `n` is in."""
        return self.shards[int(np.searchsorted(self._ends, n, side="right"))]

    def read(self, first: int, count: int) -> SampleRange:
        """`count` samples from number `first` on, as bytes that were read at once, to be decoded one by one.

        What was read and is damaged is noted in `damage`, at the latest when it is decoded. Raises UserError where
        something cannot be read now: that is no damage.
        """
        parts: list[bytes] = []
        rows = self.rows(first, min(count + 1, self.num_samples - first))  # one more: it begins where the last one ends
        while len(parts) < count:
            at = first + len(parts)
            number = int(np.searchsorted(self._ends, at, side="right"))
            some = min(count - len(parts), int(self._ends[number]) - at)
            own = None if rows is None else rows[at - first : at - first + some + 1]
            parts += self._part(number, at, some, own)
        return SampleRange(self, first, parts, None if rows is None else rows[:count])

    def rows(self, first: int, count: int) -> np.ndarray | None:
        """Rows of samples.npy (sample_table.py); None for a set of an older version."""
        if self._built is not None:
            return self._built[first : first + count]
        if self._row is None:
            return None
        entry = self.index["samples"]
        start = entry["bytes"] - (self.num_samples - first) * self._row.itemsize
        try:
            content = self._bytes(entry["url"], entry["sha256"], start, start + count * self._row.itemsize)
        except UserError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            content = b""
        if len(content) < count * self._row.itemsize:
            raise UserError(
                f"{self.path}/{entry['url']}: {'cut short' if content else 'missing'}; copy the whole folder, or run "
                f"`liquid data index {self.path}` to make it again"
            )
        return np.frombuffer(content, self._row)

    def missing_keys(self, keys: set[str]) -> set[str] | None:
        """Those of the keys that no sample has, but for a chance of one in 10^11; None for a set of an older version,
        which does not say."""
        if self._row is None and self._built is None:
            return None
        hashes = {key_hash(key): key for key in keys}
        for first in range(0, self.num_samples, SCANNED_ROWS):
            rows = self.rows(first, min(SCANNED_ROWS, self.num_samples - first))
            assert rows is not None
            found = np.isin(rows["key"], np.array(list(hashes), np.uint64))
            for known in rows["key"][found].tolist():
                hashes.pop(known, None)
            if not hashes:
                break
        return set(hashes.values())

    def _part(self, number: int, first: int, count: int, rows: np.ndarray | None) -> list[bytes]:
        """The bytes of `count` samples of shard `number` from sample `first` on, empty for lost ones, which are
        counted. rows: theirs, and that of the next sample where there is one."""
        shard, end = self.shards[number], int(self._ends[number])
        if rows is None:
            parts = self._search_chunks(number, first - end + shard.nsamples, count)
        else:
            offsets = (
                rows["offset"].tolist() if end > first + count else [*rows["offset"][:count].tolist(), shard.bytes]
            )
            parts = self._slices(shard, offsets)
        for empty, run in groupby(range(first, first + count), lambda n: not parts[n - first]):
            if empty:
                lost = list(run)
                which = f"{len(lost)} samples from number {lost[0]} to {lost[-1]}"
                self.damage.add(lost, DAMAGED_TAR, f"{self.path}/{shard.url}, {which}")
        return parts

    def _slices(self, shard: Shard, offsets: list[int]) -> list[bytes]:
        """The bytes between each two neighbours of ascending offsets in a tar."""
        if offsets != sorted(offsets) or offsets[-1] > shard.bytes:
            return [b""] * (len(offsets) - 1)  # the offsets are damaged
        content = self._bytes(shard.url, shard.sha256, offsets[0], offsets[-1])
        places = [offset - offsets[0] for offset in offsets]
        return [content[start:end] for start, end in zip(places, places[1:], strict=False)]

    def _search_chunks(self, number: int, first: int, count: int) -> list[bytes]:
        """The bytes of `count` samples of a shard, from its sample `first` on, without samples.npy."""
        shard, parts = self.shards[number], list[bytes]()
        chunks = shard.chunks if shard.chunks is not None else np.array([[0, shard.nsamples, 0]])
        ends = [*chunks[1:, 2].tolist(), shard.bytes]
        for i, (start, samples, offset) in enumerate(chunks.tolist()):
            if start < first + count and first < start + samples:
                found = self._chunks.pop((number, i), None)
                if found is None:
                    content = self._bytes(shard.url, shard.sha256, offset, ends[i])
                    found = split_samples(content, samples, ends[i] - offset)
                self._chunks[number, i] = found
                if len(self._chunks) > CACHED_CHUNKS:
                    self._chunks.popitem(last=False)
                parts += found[max(0, first - start) : first + count - start]
        return parts + [b""] * (count - len(parts))  # where the chunks do not cover all samples

    def _bytes(self, name: str, sha256: str, start: int, end: int) -> bytes:
        """A part of a file, shorter where that ends early. sha256: of the whole file. Raises UserError where it cannot
        be read now."""
        key = f"{sha256}-{start}-{end}"
        content = self._cache.get(key, end - start) if self._cache else None
        if content is None:
            try:
                content = self._folder.read(name, start, end)
            except OSError as error:
                raise UserError(cannot_be_read(f"{self.path}/{name}", error, self._folder.patience)) from error
            if self._cache and len(content) == end - start:
                self._cache.put(key, content)
        return content


class SampleRange:
    """Consecutive samples of a set, each decoded when it is first asked for, and kept."""

    def __init__(self, shards: ShardSet, first: int, parts: list[bytes], rows: np.ndarray | None) -> None:
        self.rows = rows
        self._shards, self._first = shards, first
        self._places: list[bytes | Sample | None] = [part or None for part in parts]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, i: int) -> Sample | None:
        """Sample `i` of the range; None where it is damaged, which is noted once."""
        place = self._places[i]
        if isinstance(place, bytes):
            place = self._places[i] = self._decode(i, place)
        return place

    def _decode(self, i: int, part: bytes) -> Sample | None:
        groups = group_files(part)
        if self.rows is not None:
            wanted = int(self.rows["key"][i])
            groups = {key: files for key, files in groups.items() if key_hash(key) == wanted}
        number, shards = self._first + i, self._shards
        key, files = next(iter(groups.items()), (f"number {number}", None))
        try:
            if files is None:
                raise DamagedSample(DAMAGED_TAR)
            return decode_sample(key, files, shards.codebook_size)
        except DamagedSample as error:
            shards.damage.add([number], str(error), f"{shards.path}/{shards.shard_of(number).url}, sample {key}")
            return None
