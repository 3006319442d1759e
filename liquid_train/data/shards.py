"""Reading a shard set: plain webdataset tars, and the index.json and samples.npy next to them.

    samples first .. first + count --offsets of samples.npy--> one byte range of each tar --one by one--> samples

samples.npy holds the byte offset of every sample, so that any process reaches any range of samples with one read, from
a folder or a URL, and decodes only those that are asked for. A set of an older version has none: there the chunks of
its index.json (256 samples each, or a whole tar) that cover the range are read, and searched for their samples.
A ShardSet keeps no file open and can be pickled.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import tarfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from liquid_train.data.chunk_cache import ChunkCache
from liquid_train.data.damage import DamageLog
from liquid_train.data.index_builder import missing_index
from liquid_train.data.outage import RETRY_SECONDS, cannot_be_read
from liquid_train.data.sample_table import key_hash, row_type
from liquid_train.data.shard_format import (
    INDEX_KIND,
    INDEX_NAME,
    TAR_ERRORS,
    DamagedSample,
    Sample,
    decode_sample,
    group_files,
    split_name,
)
from liquid_train.data.storage import Folder, open_folder
from liquid_train.errors import UserError

log = logging.getLogger(__name__)

BLOCK = 256  # samples that are read together where they are asked for one at a time, or all in order
CACHED_BLOCKS = 8
SCANNED_ROWS = 2**16  # of samples.npy at a time, 2 MiB
CACHED_CHUNKS = 128  # of a set without samples.npy, where several ranges may need the same chunk
DAMAGED_TAR = "damaged tar"
ENTRY = {"url", "nsamples", "bytes", "sha256"}  # what an index says of every tar


class Shard(NamedTuple):
    """What a reader needs of a tar's entry in index.json: a set may have a hundred thousand."""

    url: str
    nsamples: int
    bytes: int
    sha256: str
    chunks: np.ndarray | None = None  # [chunks, 3]: first sample, samples, byte offset; None where samples.npy has all

    @classmethod
    def of(cls, entry: dict[str, Any]) -> Any:
        """The entry as a Shard; any other object of the index as it is."""
        if "sha256" not in entry or not entry.keys() >= ENTRY:
            return entry
        chunks = np.array(entry["chunks"], np.int64).reshape(-1, 3) if "chunks" in entry else None
        return cls(entry["url"], entry["nsamples"], entry["bytes"], entry["sha256"], chunks)


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
        self.index, self._built = _open_index(self._folder)
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


def split_samples(content: bytes, samples: int, size: int) -> list[bytes]:
    """The bytes of each of a chunk's samples, for an index without their offsets.

    size: of the whole chunk, of which `content` may be only a part. Where fewer than `samples` are found, the lost ones
    are taken to be where the most bytes belong to none: that is exact where one place is damaged.
    """
    found = _extents(content)
    starts = [start for start, _ in found][:samples]
    gaps = {0: starts[0] if starts else size}  # before which sample -> bytes that belong to none
    for n, (_, end) in enumerate(found[:samples], 1):
        gaps[n] = (starts[n] if n < len(starts) else size) - end
    lost = Counter[int]()
    for _ in range(samples - len(starts)):
        lost[max(gaps, key=lambda n: gaps[n] / (1 + lost[n]))] += 1
    parts = [b""] * lost[0]
    for n, start in enumerate(starts, 1):
        parts.append(content[start : starts[n] if n < len(starts) else size])
        parts += [b""] * lost[n]
    return parts


def _extents(content: bytes) -> list[tuple[int, int]]:
    """(first byte, end) of each sample's files in a part of a tar, in order; what cannot be read is passed over."""
    found: dict[str, tuple[int, int]] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:", ignore_zeros=True) as tar:
            for member in tar:
                end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                if not member.isreg() or member.issparse():
                    continue
                if member.offset_data + member.size > len(content):
                    break
                key = split_name(member.name)[0]
                found[key] = (found.get(key, (member.offset, 0))[0], end)
    except TAR_ERRORS as error:
        log.debug("the tar ends early: %s", error)
    return list(found.values())


def _open_index(folder: Folder) -> tuple[dict[str, Any], np.ndarray | None]:
    """(index.json with a Shard for each entry, rows of the samples) of a folder. The rows are None unless they were
    made just now and could not be stored."""
    index, rows = _load(folder, Shard.of)
    return index, np.concatenate(rows) if rows else None


def read_index(folder: Folder) -> dict[str, Any]:
    """The whole index.json of a shard folder; built first where the tars have none.

    Raises UserError when there is no folder, nothing to build an index of, or the file is not a shard index.
    """
    return _load(folder, None)[0]


def _load(folder: Folder, hook: Callable[[dict[str, Any]], Any] | None) -> tuple[dict[str, Any], list[np.ndarray]]:
    path, rows = folder.path, list[np.ndarray]()
    file = f"{path}/{INDEX_NAME}"
    if not folder.exists():
        raise UserError(f"{path}: no such folder; `liquid tokenize tokenize.output={path} ...` makes a shard set")
    try:
        index = json.loads(folder.read(INDEX_NAME), object_hook=hook)
    except FileNotFoundError:
        index, rows = missing_index(folder)
        if hook:
            index["shardlist"] = [hook(entry) for entry in index["shardlist"]]
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror or error}") from error
    except (ValueError, TypeError) as error:
        raise UserError(f"{file}: not a shard index: {type(error).__name__}: {error}") from error
    try:
        good = index["__kind__"] == INDEX_KIND and all(
            isinstance(s, Shard) or set(s) >= ENTRY for s in index["shardlist"]
        )
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{file}: not a shard index: {type(error).__name__}: {error}") from error
    if not good:
        raise UserError(
            f"{file}: not an index of {INDEX_KIND} with bytes and sha256 of every shard; `liquid tokenize` "
            "writes such a one"
        )
    return {"name": str(path).rpartition("/")[2], **index}, rows
