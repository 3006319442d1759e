"""One rank's part of every global batch, read from the canonical streams that it owns by worker processes.

    stream 0..S-1 --> rank s % R --> worker (s // R) % W --> step t: sequences t*B .. (t+1)*B-1, sequence g from stream
    g % S

The order of global batches depends on (seed, config, shards) alone. Every step brings along the states of the streams
that it advanced, so that batches which were prefetched and never trained on do not count.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, TypedDict

from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from liquid_train.data.batch import RankBatch, owner
from liquid_train.data.chunk_cache import ChunkCache
from liquid_train.data.damage import Damage
from liquid_train.data.mixture import SourceReader
from liquid_train.data.packing import PackedStream, Sequence
from liquid_train.data.settings import DataConfig
from liquid_train.data.shards import ShardSet
from liquid_train.data.stream_state import StreamState
from liquid_train.distributed.signals import ignore_stops, stops_blocked
from liquid_train.errors import UserError
from liquid_train.vocabulary import Vocabulary


class StepPart(TypedDict):
    """What one worker contributes to a step: sequences by their number g, and its streams' states after them."""

    sequences: dict[int, Sequence]
    states: dict[int, StreamState]
    epochs: dict[str, float]  # passes over each source that the worker's streams have made so far, together
    dropped: dict[str, int]
    asked: dict[str, int]  # documents that its readers were asked for so far, by source
    lost: dict[str, int]  # those of them that were not made, by "source: reason"
    damage: list[Damage]  # that this worker has met since the step before, or the beginning
    ended: bool  # none of its streams had a document left for this step


class LoaderError(RuntimeError):
    """One line about a failure in this rank's loader: a worker died, or the message of what it raised."""


def open_set(data: DataConfig, path: str, vq_fingerprint: str | None, codebook_size: int | None) -> ShardSet:
    """A shard set for training or evaluation. Raises UserError for a wrong folder, index or VQ."""
    return ShardSet(
        path,
        vq_fingerprint=vq_fingerprint,
        codebook_size=codebook_size,
        cache=ChunkCache(data.cache, data.cache_gib) if data.cache else None,
        retry_seconds=data.retry_seconds,
    )


def open_sources(data: DataConfig, vq_fingerprint: str | None, codebook_size: int | None = None) -> dict[str, ShardSet]:
    """Every source's shard set. Raises UserError, with the source's name, for a wrong folder, index or VQ."""
    sets: dict[str, ShardSet] = {}
    opened: dict[str, ShardSet] = {}  # sources of the same folder share its shard set
    for name, source in data.sources.items():
        try:
            if source.path not in opened:
                opened[source.path] = open_set(data, source.path, vq_fingerprint, codebook_size)
                opened[source.path].check_files()
            sets[name] = opened[source.path]
        except UserError as error:
            raise UserError(f"data.sources.{name}.path={source.path}: {error}") from error
    return sets


def source_readers(
    data: DataConfig, seed: int, sets: dict[str, ShardSet], vocabulary: Vocabulary
) -> dict[str, SourceReader]:
    """A reader of every source that has a weight."""
    return {
        name: SourceReader(
            name, source, sets[name], vocabulary.tokenizer, data, data.streams or data.global_batch, seed
        )
        for name, source in data.sources.items()
        if source.weight > 0
    }


def is_endless(data: DataConfig) -> bool:
    """Whether some source is repeated without end."""
    return any(s.weight > 0 and s.max_epochs is None for s in data.sources.values())


class StreamDataset(IterableDataset[StepPart]):
    """A rank's streams, one StepPart a step; every worker serves its own share of the streams."""

    def __init__(
        self,
        data: DataConfig,
        seed: int,
        sets: dict[str, ShardSet],
        vocabulary: Vocabulary,
        rank: int,
        world: int,
        first_step: int,
        steps: int,
        states: dict[int, StreamState],
    ) -> None:
        self.data, self.seed, self.sets, self.vocabulary = data, seed, sets, vocabulary
        self.rank, self.world, self.first_step, self.steps, self.states = rank, world, first_step, steps, states

    def __iter__(self) -> Iterator[StepPart]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        data = self.data
        count, endless = data.streams or data.global_batch, is_endless(data)
        readers = source_readers(data, self.seed, self.sets, self.vocabulary)
        own = [s for s in range(count) if owner(s, self.world) == self.rank and (s // self.world) % workers == worker]
        streams = {
            s: PackedStream(s, readers, data.seq_len, data.window, self.vocabulary.pad, self.states.get(s)) for s in own
        }
        told = Counter[str]()  # entries of each set's damage that the steps so far have brought along
        for step in range(self.first_step, self.steps):
            ended = not endless and not any(stream.has_more() for stream in streams.values())
            part: StepPart = {
                "sequences": {},
                "states": {},
                "epochs": {},
                "dropped": {},
                "asked": {},
                "lost": {},
                "damage": [],
                "ended": ended,
            }
            for g in range(step * data.global_batch, (step + 1) * data.global_batch):
                stream = streams.get(g % count)
                if stream is not None:
                    part["sequences"][g] = stream.next()
            part["states"] = {s: streams[s].state for s in {g % count for g in part["sequences"]}}
            part["epochs"] = _epochs(streams, readers)
            part["dropped"] = {f"{name}: {reason}": n for name, r in readers.items() for reason, n in r.dropped.items()}
            for log in {id(r.shards): r.shards.damage for r in readers.values()}.values():
                part["damage"] += log.entries[told[log.path] :]
                told[log.path] = len(log.entries)
            part["asked"] = {name: r.asked for name, r in readers.items()}
            part["lost"] = {f"{name}: {reason}": n for name, r in readers.items() for reason, n in r.lost.items()}
            yield part


def _epochs(streams: dict[int, PackedStream], readers: dict[str, SourceReader]) -> dict[str, float]:
    """Passes over each source up to the streams' current windows: items read by all of them / items of the source."""
    positions = [(s, stream.state["mixture"]["positions"]) for s, stream in streams.items()]
    return {
        name: sum(reader.passed(s, *position[name]) for s, position in positions) / reader.items
        for name, reader in readers.items()
    }


@contextmanager
def one_clear_error() -> Iterator[None]:
    """Turn torch's report of a worker's death, or of a user's mistake that one found, into a LoaderError.

    torch learns of a death by a signal, so that its exception may be raised anywhere in the training loop: all of it
    must be in this context.
    """
    try:
        yield
    except (RuntimeError, ValueError) as error:
        # the cause names the signal
        said = [str(e).strip() for e in (error.__cause__, error) if "DataLoader worker" in str(e)]
        if isinstance(error, LoaderError) or not said:
            raise
        if "Original Traceback" in said[0]:  # the worker itself could say what was wrong
            _, mistake, message = said[0].rpartition(f"{UserError.__module__}.{UserError.__qualname__}: ")
            if not isinstance(error, UserError) or not mistake:
                raise  # a bug, with the worker's traceback
            raise LoaderError(message) from error
        remedy = (
            "often it ran out of memory (see the kernel's log): lower data.workers or data.window; "
            "data.workers=0 shows an error of its "
            "own"
        )
        raise LoaderError(
            f"a data loader's process died: {said[0].split('. ')[0].removesuffix('.')}; {remedy}"
        ) from error


class BatchLoader:
    """Iterates over a rank's batches from `first_step` on. states: the canonical streams', from a checkpoint."""

    def __init__(
        self,
        data: DataConfig,
        seed: int,
        sets: dict[str, ShardSet],
        vocabulary: Vocabulary,
        *,
        rank: int,
        world: int,
        first_step: int,
        steps: int,
        states: dict[int, StreamState] | None = None,
    ) -> None:
        count = data.streams or data.global_batch
        if world > count:
            raise UserError(
                f"data.streams={count}: fewer than the {world} data-parallel ranks; raise data.streams or "
                "data.global_batch, or start fewer "
                "ranks"
            )
        self.steps, self.first_step = steps, first_step
        self.dataset = StreamDataset(data, seed, sets, vocabulary, rank, world, first_step, steps, dict(states or {}))
        own = sum(owner(s, world) == rank for s in range(count))
        self.workers = min(data.workers, own)

    def __iter__(self) -> Iterator[RankBatch]:
        # a pipe, not a multiprocessing.Event: to set that hangs once a process that waits for it was killed
        leave, leaving = Pipe(duplex=False)
        loader = DataLoader(
            self.dataset,
            batch_size=None,
            num_workers=self.workers,
            prefetch_factor=4 if self.workers else None,
            collate_fn=_as_it_is,
            worker_init_fn=partial(_serve, leave, leaving),
        )
        with stops_blocked():
            parts = iter(loader)
        try:
            yield from self._batches(parts)
        finally:
            os.write(leaving.fileno(), bytes(max(1, self.workers)))  # one byte for each
            leaving.close()
            leave.close()

    def _batches(self, parts: Iterator[StepPart]) -> Iterator[RankBatch]:
        for step in range(self.first_step, self.steps):
            batch = RankBatch(step, {}, {}, {})
            epochs, dropped, asked, lost = (Counter[str]() for _ in range(4))
            for _ in range(max(1, self.workers)):  # torch's loader takes turns: one part of each worker makes a step
                with one_clear_error():
                    part: StepPart = next(parts)
                batch.sequences.update(part["sequences"])
                batch.states.update(part["states"])
                batch.damage += part["damage"]
                batch.ended &= part["ended"]
                epochs.update(part["epochs"])
                dropped.update(part["dropped"])
                asked.update(part["asked"])
                lost.update(part["lost"])
            batch.epochs, batch.dropped = dict(epochs), dict(dropped)
            batch.asked, batch.lost = dict(asked), dict(lost)
            yield batch


def _serve(leave: Connection, leaving: Connection, _: int) -> None:
    """At the start of a worker process: it ends with its rank, and not before by a signal that the whole process group
    gets. leave, leaving: the ends of the pipe through which the rank says that it leaves, or which breaks with it; the
    worker then ends at once: it may wait in an outage."""
    leaving.close()
    ignore_stops()

    def end() -> None:
        os.read(leave.fileno(), 1)
        os._exit(0)

    threading.Thread(target=end, name="leave", daemon=True).start()


def _as_it_is(part: Any) -> Any:
    """Replaces torch's conversion to tensors, which would walk through every state of every stream."""
    return part
