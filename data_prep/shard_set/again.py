"""Which finished shards have to be made again, because of what their images are now."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import Any

from data_prep.encode.crops import Crop
from data_prep.settings import TokenizeSettings
from data_prep.shard_set.index import Record
from data_prep.shard_set.plan import SetPlan
from data_prep.shard_set.writer import shard_name
from data_prep.source import ImageFile, Source, SourceRow
from liquid_train.errors import UserError

THREADS = 16  # a shared file system is slow to answer one request, but answers many at a time
IMAGES = "image_files"  # key of a shard's entry in the index
OUT_OF_REACH = ("missing image", "unreadable image")  # begin the reasons that may have passed by themselves


def digest(states: Iterable[str]) -> str:
    """Of the sizes and times of change of the files that a shard's images were read from."""
    return hashlib.sha256("\n".join(states).encode()).hexdigest()[:16]


def changed_images(source: Source, plan: SetPlan, records: dict[int, Record]) -> dict[int, str]:
    """Shards whose image files are not those that they were made of: shard -> its first image, for a message.

    An image that is gone tells nothing: images may be removed once they are tokenized, or lie in a folder that is away.
    Costs a look at every file that a list names.
    """
    known = {number: record for number, record in records.items() if IMAGES in record["entry"]}
    left_out = {row["row"] for record in known.values() for row in record["left_out"]}
    wanted = (row for number in sorted(known) for row in plan.rows_in(number) if row not in left_out)
    changed = {}
    with ThreadPoolExecutor(THREADS) as pool:
        for number, items in _by_shard(source, plan, wanted):
            files = [item.image for item in items if isinstance(item.image, ImageFile)]
            states = [state for state in pool.map(ImageFile.state, files) if state is not None]
            if len(states) == len(files) and digest(states) != known[number]["entry"][IMAGES]:
                changed[number] = items[0].origin
    return changed


def mended_rows(source: Source, plan: SetPlan, crop: Crop | None, records: dict[int, Record]) -> dict[int, int]:
    """Shards with rows that were left out and can be used now: shard -> how many.

    records: of finished shards, with those rows alone under left_out that are to be tried. Each is read and cropped.
    """
    wanted = sorted(row["row"] for record in records.values() for row in record["left_out"])

    def usable(item: SourceRow) -> bool:
        from data_prep.encode.encoder import prepare  # torch: only where something was left out

        if item.problem is not None or crop is None:
            return item.problem is None
        return not isinstance(prepare(item.image, crop), str)

    with ThreadPoolExecutor(THREADS) as pool:
        found = {number: sum(pool.map(usable, items)) for number, items in _by_shard(source, plan, wanted)}
    return {number: count for number, count in found.items() if count}


def _by_shard(source: Source, plan: SetPlan, rows: Iterable[int]) -> Iterator[tuple[int, list[SourceRow]]]:
    """The given rows, ascending, shard by shard."""
    for number, group in groupby(plan.read_rows(source, rows), lambda pair: pair[0] // plan.shard_size):
        yield number, [item for _, item in group]


def shards_to_make_again(
    t: TokenizeSettings, source: Source, plan: SetPlan, crop: Crop | None, records: dict[int, Record], *, complete: bool
) -> frozenset[int]:
    """Of the finished shards with these records, those that are not what the settings ask for now: images of other
    content under tokenize.overwrite, dropped rows that can be used under tokenize.retry_dropped. In a set that is not
    complete yet, rows whose image was out of reach are tried without being asked for.

    Raises UserError for images of other content that may not be replaced.
    """
    changed = changed_images(source, plan, records)
    if changed and not t.overwrite:
        number = min(changed)
        raise UserError(
            f"tokenize.output={t.output}: of {len(changed)} of its shards the images have changed since (near "
            f"{changed[number]}, in {shard_name(number)}); give another tokenize.output, or tokenize.overwrite=true to "
            "make these shards again"
        )

    def to_try(row: dict[str, Any]) -> bool:
        return t.retry_dropped or (not complete and row["reason"].startswith(OUT_OF_REACH))

    dropped = {
        number: {**record, "left_out": rows}
        for number, record in records.items()
        if (rows := [row for row in record["left_out"] if to_try(row)])
    }
    mended = mended_rows(source, plan, crop, dropped)
    if mended:
        print(f"{t.output}: {sum(mended.values()):,} dropped rows can be used now: {len(mended)} shards are made again")
    elif t.retry_dropped:
        tried = sum(len(record["left_out"]) for record in dropped.values())
        print(f"{t.output}: none of its {tried:,} dropped rows can be used now")
    return frozenset(changed) | frozenset(mended)
