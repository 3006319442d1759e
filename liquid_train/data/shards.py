"""Reading a shard set: plain webdataset tars, and the index.json next to them.

The index divides every tar into chunks of 256 samples and holds their byte offsets. A chunk is read as one byte range
from a folder or a URL, so that any process reaches any sample without scanning. A ShardSet keeps no file open and can
be pickled.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tarfile
from bisect import bisect_right
from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from liquid_train.data.chunk_cache import ChunkCache
from liquid_train.data.index_builder import missing_index
from liquid_train.data.shard_format import INDEX_KIND, INDEX_NAME, DamagedSample, Sample, decode_sample, group_files
from liquid_train.data.storage import Folder, open_folder
from liquid_train.errors import UserError

log = logging.getLogger(__name__)

CACHED_CHUNKS = 128  # 32,768 samples, so that a small set, which is dealt sample by sample, is read only once


@dataclass(slots=True)  # not frozen: a set has hundreds of thousands, and this makes them in a third of the time
class Chunk:
    """Consecutive samples of one shard."""

    shard: int
    first: int  # number of its first sample in the whole set
    count: int
    offset: int  # in the tar, in bytes


class ShardSet:
    """A folder of shards, opened by its index. `path` may be an fsspec URL; `cache` keeps chunks that were read from
    one.

    num_samples, chunks: over all shards, in order. digest: sha256 over the shards' digests. fingerprint, codebook_size:
    of the VQ that made the codes; None for a set of texts. bad: damaged samples met so far, by reason, each counted
    once.
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
    ) -> None:
        self._folder = open_folder(path)
        self._chunk_cache = cache if self._folder.remote else None
        self.path = self._folder.path
        self.index = read_index(self._folder)
        self.name: str = self.index["name"]
        self.shards: list[dict[str, Any]] = self.index["shardlist"]
        self.fingerprint: str | None = self.index.get("vq_fingerprint")
        self.codebook_size: int | None = self.index.get("codebook_size")
        self.num_samples = sum(s["nsamples"] for s in self.shards)
        self.digest = hashlib.sha256("".join(s["sha256"] for s in self.shards).encode()).hexdigest()
        self.chunks = _chunks(self.shards)
        self._firsts = [chunk.first for chunk in self.chunks]
        self.bad: Counter[str] = Counter()
        self._counted: set[int] = set()
        self._cache: OrderedDict[int, list[Sample | None]] = OrderedDict()
        self._check_vq(vq_fingerprint, codebook_size)

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
    def multiratio_sizes(self) -> list[tuple[int, int]]:
        """Width and height in pixels of the sizes that its images were fitted to (tokenize.crop=multiratio); empty for
        other sets."""
        crop = self.index.get("recipe", {}).get("crop", {})
        return [(int(width), int(height)) for width, height in crop.get("sizes", ())]

    def check_files(self) -> None:
        """Raise UserError for the first tar of the index that is missing or has another size.

        Over http, where folders cannot be listed, 64 tars of a larger set are checked, and that the server sends byte
        ranges.
        """
        try:
            sizes = self._folder.sizes([shard["url"] for shard in self.shards])
            for shard in self.shards:
                tar = f"{self.path}/{shard['url']}"
                if shard["url"] not in sizes:
                    raise UserError(
                        f"{tar}: missing, though {INDEX_NAME} lists it; copy the whole folder, or run `liquid "
                        "tokenize` again to make it"
                    )
                size = sizes[shard["url"]]
                if size is not None and size != shard["bytes"]:
                    raise UserError(
                        f"{tar}: {size:,} bytes, {INDEX_NAME} says {shard['bytes']:,}; run `liquid tokenize` again "
                        "to repair it"
                    )
            if self._folder.remote and self.shards:
                self._folder.read(self.shards[0]["url"], 0, tarfile.BLOCKSIZE)
        except OSError as error:
            raise UserError(f"{self.path}: its tars cannot be read: {error}") from error

    def read_chunk(self, i: int) -> list[Sample]:
        """The samples of chunk `i` in order, without the damaged ones, which are logged and counted in `bad`."""
        return [sample for sample in self._places(i) if sample is not None]

    def sample(self, n: int) -> Sample | None:
        """Sample number `n` of the set, None where it is damaged. Raises IndexError beyond the set."""
        if not 0 <= n < self.num_samples:
            raise IndexError(f"{self.path}: sample {n} of {self.num_samples}")
        i = bisect_right(self._firsts, n) - 1
        return self._places(i)[n - self.chunks[i].first]

    def __iter__(self) -> Iterator[Sample]:
        for i in range(len(self.chunks)):
            yield from self.read_chunk(i)

    def __len__(self) -> int:
        return self.num_samples

    def _places(self, i: int) -> list[Sample | None]:
        """The samples of chunk `i`, None for damaged ones; the last few chunks are kept."""
        if i in self._cache:
            self._cache.move_to_end(i)
            return self._cache[i]
        places, damage = self._parse_chunk(i)
        if i not in self._counted:  # the same damage is met again in the next epoch
            self._counted.add(i)
            for which, reason, count in damage:
                log.warning(
                    "%s, %s: left out: %s", f"{self.path}/{self.shards[self.chunks[i].shard]['url']}", which, reason
                )
                self.bad[reason] += count
        self._cache[i] = places
        if len(self._cache) > CACHED_CHUNKS:
            self._cache.popitem(last=False)
        return places

    def _parse_chunk(self, i: int) -> tuple[list[Sample | None], list[tuple[str, str, int]]]:
        """The samples of chunk `i`, None for damaged ones, and what is damaged: (which, reason, how many).

        Which sample has lost all its files cannot be told, so the last ones of the chunk count as damaged.
        """
        chunk = self.chunks[i]
        try:
            groups = list(group_files(self._chunk_bytes(i)).items())[: chunk.count]
        except OSError as error:
            groups, reason = [], f"unreadable tar ({error.strerror or error})"
        else:
            reason = "damaged tar"
        places: list[Sample | None] = []
        damage: list[tuple[str, str, int]] = []
        for key, files in groups:
            try:
                places.append(decode_sample(key, files, self.codebook_size))
            except DamagedSample as error:
                places.append(None)
                damage.append((f"sample {key}", str(error), 1))
        if lost := chunk.count - len(places):
            damage.append(
                (f"{lost} samples from number {chunk.first} to {chunk.first + chunk.count - 1}", reason, lost)
            )
        return places + [None] * lost, damage

    def _chunk_bytes(self, i: int) -> bytes:
        """The chunk's part of its tar, shorter where the tar ends early. Raises OSError."""
        chunk, shard = self.chunks[i], self.shards[self.chunks[i].shard]
        last = i + 1 == len(self.chunks) or self.chunks[i + 1].shard != chunk.shard
        end = shard["bytes"] if last else self.chunks[i + 1].offset
        key = f"{shard['sha256']}-{chunk.offset}"
        content = self._chunk_cache.get(key, end - chunk.offset) if self._chunk_cache else None
        if content is None:
            content = self._folder.read(shard["url"], chunk.offset, end)
            if self._chunk_cache and len(content) == end - chunk.offset:
                self._chunk_cache.put(key, content)
        return content


def read_index(folder: Folder) -> dict[str, Any]:
    """The index.json of a shard folder; built first where the tars have none.

    Raises UserError when there is no folder, nothing to build an index of, or the file is not a shard index.
    """
    path = folder.path
    file = f"{path}/{INDEX_NAME}"
    if not folder.exists():
        raise UserError(f"{path}: no such folder; `liquid tokenize tokenize.output={path} ...` makes a shard set")
    try:
        index = json.loads(folder.read(INDEX_NAME))
    except FileNotFoundError:
        index = missing_index(folder)
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"{file}: not a shard index: {type(error).__name__}: {error}") from error
    try:
        good = index["__kind__"] == INDEX_KIND and all(
            {"url", "nsamples", "bytes", "sha256", "chunks"} <= set(s) for s in index["shardlist"]
        )
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{file}: not a shard index: {type(error).__name__}: {error}") from error
    if not good:
        raise UserError(
            f"{file}: not an index of {INDEX_KIND} with bytes, sha256 and chunks of every shard; `liquid tokenize` "
            "writes such a one"
        )
    return {"name": str(path).rpartition("/")[2], **index}


def _chunks(shards: list[dict[str, Any]]) -> list[Chunk]:
    chunks, start = [], 0
    for number, shard in enumerate(shards):
        chunks += [Chunk(number, start + first, count, offset) for first, count, offset in shard["chunks"]]
        start += shard["nsamples"]
    return chunks
