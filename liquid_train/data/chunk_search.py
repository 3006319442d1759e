"""Where the samples of a chunk lie, for a set without samples.npy: found by walking through the tar's headers."""

from __future__ import annotations

import io
import logging
import tarfile
from collections import Counter

from liquid_train.data.shard_format import TAR_ERRORS, split_name

log = logging.getLogger(__name__)


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
