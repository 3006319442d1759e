"""Making the shards of one part, and the index once all parts are done."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from data_prep.encode.crops import TOO_LONG
from data_prep.encode.encoding import Encoding
from data_prep.encode.reconstruction import Reconstruction, sampled_rows, summary, warn_if_low
from data_prep.settings import TokenizeSettings
from data_prep.shard_set.again import IMAGES, digest, shards_to_make_again
from data_prep.shard_set.folder import DROPPED_NAME, SetFolder
from data_prep.shard_set.index import check_bad, code_counts, complete_set, counted
from data_prep.shard_set.plan import Part, SetPlan
from data_prep.shard_set.samples import rows_per_task, samples_of
from data_prep.shard_set.writer import ShardWriter
from data_prep.source import Source, SourceRow
from liquid_train.data.sample_table import pack_rows

if TYPE_CHECKING:
    from data_prep.encode.encoder import Encoded, RowTask

from liquid_train.logs import console

log = logging.getLogger(__name__)

# (shard, its rows, and for each of them its codes, the reason for having none, or None for a text)
EncodedRows = tuple[int, list[SourceRow], list["Encoded | str | None"]]

SHOWN = 20  # rows that are left out and named on the terminal; dropped.jsonl names all


class SetMaker:
    """Makes the shards that a part lacks, in order; the part that finds all of the set done completes it."""

    def __init__(
        self,
        settings: TokenizeSettings,
        source: Source,
        folder: SetFolder,
        plan: SetPlan,
        part: Part,
        encoding: Encoding | None,
    ) -> None:
        self.settings, self.source, self.folder, self.plan, self.part, self.encoding = (
            settings,
            source,
            folder,
            plan,
            part,
            encoding,
        )
        self.shards = part.shards(plan)
        self.bad: Counter[str] = Counter()
        self._named = 0
        self._code_counts: np.ndarray | None = None  # of the shard being written
        self._left_out: list[dict[str, Any]] = []
        self._image_files: list[str] = []  # states of the files that its images were read from
        self._reconstruction = Reconstruction(encoding) if encoding else None
        self._sampled: list[int] = []  # rows of which an image is to be decoded, still to come
        self._psnr: list[float] = []

    def make(self) -> None:
        """Make what is missing. Raises UserError past tokenize.max_bad, and for a complete set in which no sample is
        left."""
        self.folder.claim(self.shards)
        done = self.folder.finished(self.shards)
        crop = self.encoding.crop if self.encoding else None
        for number in shards_to_make_again(self.settings, self.source, self.plan, crop, done, complete=False):
            self.folder.remove_shard(number)
            del done[number]
        for record in done.values():
            self._count_bad(record["entry"]["dropped"])
        todo = [number for number in self.shards if number not in done]
        rows = sum(map(self.plan.rows_of, todo))
        if done:
            print(f"{self.settings.output}: {len(done)} of {len(self.shards)} shards are there already")
        started = time.perf_counter()
        self._make_shards(todo, rows)
        self._complete(rows / (time.perf_counter() - started) if rows else None)

    def _complete(self, rate: float | None) -> None:
        with self.folder.planning():
            if self.folder.index is not None:  # another part came first
                return
            there = len(self.folder.finished_numbers())
            if there < self.plan.shards:
                print(
                    (
                        f"{self.settings.output}: {self.part} is done; {there} of {self.plan.shards} shards of "
                        "the set are there"
                    )
                    + (f", {rate:,.1f} rows/s" if rate else "")
                )
                return
            index = complete_set(self.folder, self.plan, self.settings.max_bad)
        print_set_summary(str(self.settings.output), index, rate)

    def _count_bad(self, dropped: dict[str, int]) -> None:
        self.bad.update({reason: n for reason, n in dropped.items() if not reason.startswith(TOO_LONG)})

    def _tasks(self, todo: list[int]) -> Iterator[tuple[int, list[SourceRow], bool]]:
        """(shard, items, whether they are its last) of every task; a task never crosses a shard."""
        size = rows_per_task(self.encoding.encoder.settings.batch_size if self.encoding else None)
        for number in todo:
            items = self.plan.read(self.source, number)
            left = self.plan.rows_of(number)
            while batch := list(islice(items, min(size, left) or None)):
                left -= len(batch)
                yield number, batch, not left

    def _encoded(self, todo: list[int]) -> Generator[EncodedRows, None, None]:
        """All rows in order."""
        if self.encoding is None:
            for number, items, _ in self._tasks(todo):
                yield number, items, [item.problem for item in items]
            return
        from data_prep.encode.encoder import RowTask, encode_tasks

        waiting: deque[tuple[int, SourceRow]] = deque()

        def tasks() -> Iterator[RowTask]:
            for number, items, last in self._tasks(todo):
                waiting.extend((number, item) for item in items)
                yield RowTask([None if item.problem else item.image for item in items], last)

        with closing(
            encode_tasks(tasks(), self.encoding.encoder, self.encoding.crop, self.encoding.workers, self.settings.wait)
        ) as results:
            for codes in results:
                rows = [waiting.popleft() for _ in codes]
                items = [item for _, item in rows]
                yield rows[0][0], items, [item.problem or result for item, result in zip(items, codes, strict=True)]

    def _make_shards(self, todo: list[int], rows: int) -> None:
        writer: ShardWriter | None = None
        left = row = 0
        with (
            closing(self._encoded(todo)) as batches,
            progress(self.settings.output, rows, self.settings.progress) as advance,
        ):
            try:
                for number, items, results in batches:
                    if writer is None:
                        writer, left, row = (
                            self._new_shard(number),
                            self.plan.rows_of(number),
                            number * self.plan.shard_size,
                        )
                    for item, result in zip(items, results, strict=True):
                        self._write(writer, row, item, result)
                        row += 1
                    check_bad(self.bad, self.plan.rows, self.settings.max_bad)
                    left -= len(items)
                    if not left:
                        self._finish_shard(writer)
                        writer = None
                    advance(len(items))
            finally:
                if writer is not None:
                    writer.abort()

    def _new_shard(self, number: int) -> ShardWriter:
        self._code_counts = np.zeros(self.encoding.encoder.model.codebook_size, np.int64) if self.encoding else None
        self._left_out, self._image_files, self._psnr = [], [], []
        rows = sampled_rows(self.plan.rows, self.plan.shard_size) if self.encoding else []
        self._sampled = [row for row in rows if row in self.plan.rows_in(number)]
        return ShardWriter(self.folder.partial.parent, number)

    def _finish_shard(self, writer: ShardWriter) -> None:
        entry = writer.close()
        if self._image_files:
            entry[IMAGES] = digest(self._image_files)
        if self._psnr:
            entry["psnr"] = self._psnr
            if writer.number == 0 and self.plan.shards > 1:
                warn_if_low(self.settings.output, summary([self._psnr])["psnr"])
        record = {
            "entry": entry,
            "left_out": self._left_out,
            "codes": self._code_counts,
            "rows": pack_rows(writer.rows),
            "plan": self.plan.digest,
        }
        self.folder.add(record, writer.staged)

    def _write(self, writer: ShardWriter, row: int, item: SourceRow, result: Encoded | str | None) -> None:
        """Append a row's sample or samples to its shard, or note why it has none."""
        if isinstance(result, str):
            self._leave_out(writer, row, item, result)
            return
        if result is not None:
            assert self._code_counts is not None
            self._code_counts += code_counts(result.codes, len(self._code_counts))
            if result.file is not None:
                self._image_files.append(result.file)
            self._measure(row, item, result)
        for sample in samples_of(self.plan, row, item, result):
            writer.add(*sample)

    def _measure(self, row: int, item: SourceRow, result: Encoded) -> None:
        """PSNR of the first image from every sampled row on."""
        if not self._sampled or row < self._sampled[0] or item.image is None:
            return
        assert self._reconstruction is not None
        value = self._reconstruction.psnr(item.image, result.codes)
        if value is not None:
            self._psnr.append(value)
            self._sampled = [sampled for sampled in self._sampled if sampled > row]

    def _leave_out(self, writer: ShardWriter, row: int, item: SourceRow, reason: str) -> None:
        writer.dropped[reason] += 1
        self._count_bad({reason: 1})
        self._left_out.append({"shard": writer.final.name, "row": row, "origin": item.origin, "reason": reason})
        if self._named < SHOWN:
            log.warning("%s: left out: %s", item.origin, reason)
        elif self._named == SHOWN:
            log.warning(
                "further rows that are left out: see %s once the set is complete", f"{self.folder}/{DROPPED_NAME}"
            )
        self._named += 1


@contextmanager
def progress(label: str, total: int, shown: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar with rows a second and the time left; yields the function that moves it on."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    rate = TextColumn("{task.fields[rate]:,.0f}/s")
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        rate,
        TimeRemainingColumn(),
        console=console(),
        disable=not shown,
    ) as bar:
        task = bar.add_task(label, total=total, rate=0.0)
        started, done = time.perf_counter(), 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            bar.update(task, completed=done, rate=done / (time.perf_counter() - started))

        yield advance


def print_set_summary(path: str, index: dict[str, Any], rate: float | None) -> None:
    """What was made, in a few lines. rate: rows a second of this process, None where all shards were there."""
    totals, size = index["totals"], sum(shard["bytes"] for shard in index["shardlist"])
    print(
        f"{path}: {totals['samples']:,} samples in {len(index['shardlist'])} shards, {size / 2**20:.1f} MiB"
        + (f", {rate:,.1f} rows/s" if rate else "")
    )
    print(f"  dropped: {counted(index['dropped'])}; omitted by the source: {counted(index['omitted'])}")
    if "codes" in index:
        print(
            f"  {totals['questions']:,} questions; {totals.get('captions', 0):,} images with a caption, "
            f"{index['no_caption']:,} without"
        )
        print(
            f"  codes used: {index['codes']['used']:,} of {index['codebook_size']:,}, perplexity "
            f"{index['codes']['perplexity']:,.1f}; "
            f"{size / max(1, totals.get('images', 0)):,.0f} bytes an image"
        )
        if "psnr" in index:
            print(f"  PSNR of {index['psnr']['images']} images from their codes: {index['psnr']['db']:.1f} dB")
            warn_if_low(path, index["psnr"])
    else:
        ids = f", {totals['text_ids']:,} token ids" if "text_ids" in totals else ""
        print(f"  {totals['text_characters']:,} characters of text{ids}")
