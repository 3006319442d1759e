"""Global batches out of canonical streams, for one rank: which sequences are its own, workers, and the state that
travels along.

    stream 0..S-1 --> rank s % R --> worker (s // R) % W --> step t: sequences t*B .. (t+1)*B-1, sequence g from stream
    g % S

The order of global batches depends on (seed, config, shards) alone. Every step brings the states of the streams it
advanced, so what was prefetched and never trained on does not count.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, TypedDict

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from liquid_train.config.schema import TrainJob
from liquid_train.data.chunk_cache import ChunkCache
from liquid_train.data.mixture import SourceReader
from liquid_train.data.packing import PackedStream, Sequence, StreamState
from liquid_train.data.sequences import IGNORED
from liquid_train.data.settings import TASKS, DataConfig
from liquid_train.data.shards import ShardSet
from liquid_train.errors import UserError
from liquid_train.model.attention import DocumentPlan
from liquid_train.vocabulary import Vocabulary


class StepPart(TypedDict):
    """What one worker adds to a step: sequences by their place in the global batch, and its streams' states after
    them."""

    sequences: dict[int, Sequence]
    states: dict[int, StreamState]
    epochs: dict[str, float]  # passes over each source that the worker's streams have made so far, together
    dropped: dict[str, int]
    damaged: int  # unreadable samples that this worker has met so far
    ended: bool  # none of its streams had a document left for this step


class LoaderError(RuntimeError):
    """What went wrong in this rank's loader, in one line: a worker that died, or the message of what it raised."""


@dataclass(frozen=True)
class MicroBatch:
    """Tensors of n sequences. targets are the labels shifted by one: targets[i, j] is what position j predicts."""

    input_ids: Tensor  # [n, seq_len] int64
    targets: Tensor  # [n, seq_len] int64, -100 = none
    position_ids: Tensor  # [n, seq_len] int64
    tasks: Tensor  # [n, seq_len] int8, task of the target; -1 = none
    weights: Tensor  # [n, seq_len] fp32, the target's share in the loss
    plan: DocumentPlan

    def to(self, device: torch.device) -> MicroBatch:
        moved = {f.name: getattr(self, f.name).to(device) for f in fields(self)}
        return MicroBatch(**moved)


@dataclass
class RankBatch:
    """One rank's part of a global batch."""

    step: int  # 0-based
    sequences: dict[int, Sequence]
    states: dict[int, StreamState]
    epochs: dict[str, float]
    dropped: dict[str, int] = field(default_factory=dict)
    damaged: int = 0
    ended: bool = True  # every source is used up: the rank's streams, this step's and all others, have nothing left

    @property
    def documents(self) -> int:
        return sum(s.documents for s in self.sequences.values())

    @property
    def padding(self) -> int:
        return sum(s.padding for s in self.sequences.values())

    def digests(self) -> dict[int, bytes]:
        return {g: s.digest() for g, s in self.sequences.items()}


def batch_digest(digests: dict[int, bytes]) -> str:
    """Hash of a whole global batch from its sequences' digests, in the batch's order."""
    return hashlib.sha256(b"".join(digests[g] for g in sorted(digests))).hexdigest()


def open_set(config: TrainJob, path: str, vq_fingerprint: str | None, codebook_size: int | None) -> ShardSet:
    """One shard set for training or evaluation. Raises UserError when its folder, index or VQ is not right."""
    data = config.data
    cache = ChunkCache(data.cache, data.cache_gib) if data.cache else None
    return ShardSet(path, vq_fingerprint=vq_fingerprint, codebook_size=codebook_size, cache=cache)


def open_sources(config: TrainJob, vq_fingerprint: str | None, codebook_size: int | None = None) -> dict[str, ShardSet]:
    """Open every source's shard set; UserError names the source when its folder, index or VQ is not right."""
    sets: dict[str, ShardSet] = {}
    opened: dict[str, ShardSet] = {}  # tasks that share a folder share what was read of it
    for name, source in config.data.sources.items():
        try:
            if source.path not in opened:
                opened[source.path] = open_set(config, source.path, vq_fingerprint, codebook_size)
                opened[source.path].check_files()
            sets[name] = opened[source.path]
        except UserError as error:
            raise UserError(f"data.sources.{name}.path={source.path}: {error}") from error
    return sets


def source_readers(config: TrainJob, sets: dict[str, ShardSet], vocabulary: Vocabulary) -> dict[str, SourceReader]:
    """A reader of every source that has a weight."""
    data = config.data
    return {
        name: SourceReader(
            name, source, sets[name], vocabulary.tokenizer, data, data.streams or data.global_batch, config.seed
        )
        for name, source in data.sources.items()
        if source.weight > 0
    }


def is_endless(data: DataConfig) -> bool:
    """Whether some source is read again and again."""
    return any(s.weight > 0 and s.max_epochs is None for s in data.sources.values())


def owner(stream: int, world: int) -> int:
    """The rank that a canonical stream belongs to."""
    return stream % world


class StreamDataset(IterableDataset):
    """A rank's streams, one StepPart after another; every worker serves its own share of the streams."""

    def __init__(
        self,
        config: TrainJob,
        sets: dict[str, ShardSet],
        vocabulary: Vocabulary,
        rank: int,
        world: int,
        first_step: int,
        steps: int,
        states: dict[int, StreamState],
    ) -> None:
        self.config, self.sets, self.vocabulary = config, sets, vocabulary
        self.rank, self.world, self.first_step, self.steps, self.states = rank, world, first_step, steps, states

    def __iter__(self) -> Iterator[StepPart]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        data = self.config.data
        count, endless = data.streams or data.global_batch, is_endless(data)
        readers = source_readers(self.config, self.sets, self.vocabulary)
        own = [s for s in range(count) if owner(s, self.world) == self.rank and (s // self.world) % workers == worker]
        streams = {
            s: PackedStream(s, readers, data.seq_len, data.window, self.vocabulary.pad, self.states.get(s)) for s in own
        }
        for step in range(self.first_step, self.steps):
            ended = not endless and not any(stream.has_more() for stream in streams.values())
            part: StepPart = {"sequences": {}, "states": {}, "epochs": {}, "dropped": {}, "damaged": 0, "ended": ended}
            for g in range(step * data.global_batch, (step + 1) * data.global_batch):
                stream = streams.get(g % count)
                if stream is not None:
                    part["sequences"][g] = stream.next()
            part["states"] = {s: streams[s].state for s in {g % count for g in part["sequences"]}}
            part["epochs"] = _epochs(streams, readers)
            part["dropped"] = {
                f"{name}: {reason}": n
                for name, r in readers.items()
                for reason, n in (r.dropped + r.shards.bad).items()
            }
            part["damaged"] = sum(
                shards.bad.total() for shards in {id(r.shards): r.shards for r in readers.values()}.values()
            )
            yield part


def _epochs(streams: dict[int, PackedStream], readers: dict[str, SourceReader]) -> dict[str, float]:
    """Passes over each source up to the streams' windows at hand: items read by all of them / items of the source.

    An item that is being read counts by its samples, as if each made one document.
    """
    passes = {}
    positions = [stream.state["mixture"]["positions"] for stream in streams.values()]
    for name, reader in readers.items():
        samples = reader.shards.num_samples / reader.items
        passes[name] = sum(p[name][0] + min(1.0, p[name][1] / samples) for p in positions) / reader.items
    return passes


@contextmanager
def one_clear_error() -> Iterator[None]:
    """Turn what torch says of a worker's death, or of a user's mistake that one found, into a LoaderError.

    torch learns of a death by a signal, so the exception can appear anywhere in the training loop: it is wrapped as a
    whole.
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
    """Iterate over a rank's batches from `first_step` on; `states` are the canonical streams' states of a
    checkpoint."""

    def __init__(
        self,
        config: TrainJob,
        sets: dict[str, ShardSet],
        vocabulary: Vocabulary,
        *,
        rank: int,
        world: int,
        first_step: int,
        steps: int,
        states: dict[int, StreamState] | None = None,
    ) -> None:
        count = config.data.streams or config.data.global_batch
        if world > count:
            raise UserError(
                f"data.streams={count}: fewer than the {world} data-parallel ranks; raise data.streams or "
                "data.global_batch, or start fewer "
                "ranks"
            )
        self.config, self.steps, self.first_step = config, steps, first_step
        self.dataset = StreamDataset(config, sets, vocabulary, rank, world, first_step, steps, dict(states or {}))
        own = sum(owner(s, world) == rank for s in range(count))
        self.workers = min(config.data.workers, own)

    def __iter__(self) -> Iterator[RankBatch]:
        loader = DataLoader(
            self.dataset,
            batch_size=None,
            num_workers=self.workers,
            prefetch_factor=4 if self.workers else None,
            collate_fn=_as_it_is,
        )
        parts = iter(loader)
        for step in range(self.first_step, self.steps):
            batch = RankBatch(step, {}, {}, {})
            epochs, dropped = Counter[str](), Counter[str]()
            for _ in range(max(1, self.workers)):  # the loader takes its workers in turn: one part of each makes a step
                with one_clear_error():
                    part: StepPart = next(parts)
                batch.sequences.update(part["sequences"])
                batch.states.update(part["states"])
                batch.damaged += part["damaged"]
                batch.ended &= part["ended"]
                epochs.update(part["epochs"])  # type: ignore[arg-type]  # a Counter adds any numbers
                dropped.update(part["dropped"])
            batch.epochs, batch.dropped = dict(epochs), dict(dropped)
            yield batch


def _as_it_is(part: Any) -> Any:
    """In place of torch's conversion, which walks through every state of every stream."""
    return part


def micro_batches(config: TrainJob, batch: RankBatch, world: int, pad: int) -> list[MicroBatch]:
    """A rank's sequences in micro-batches; every rank has as many (collectives must match), the last completed with
    empty ones."""
    size = config.train.micro_batch
    count = config.data.streams or config.data.global_batch
    per_rank = [0] * world
    for g in range(batch.step * config.data.global_batch, (batch.step + 1) * config.data.global_batch):
        per_rank[owner(g % count, world)] += 1
    needed = math.ceil(max(per_rank) / size)
    size = min(size, max(per_rank))
    sequences = [batch.sequences[g] for g in sorted(batch.sequences)]
    return [collate(sequences[i * size : (i + 1) * size], size, config, pad) for i in range(needed)]


def collate(sequences: list[Sequence], size: int, config: TrainJob, pad: int) -> MicroBatch:
    """Stack `size` sequences (empty ones without targets where there are fewer) and shift labels into targets."""
    seq_len = config.data.seq_len
    ids = torch.full((size, seq_len), pad, dtype=torch.int64)
    targets = torch.full((size, seq_len), IGNORED, dtype=torch.int64)
    positions = torch.arange(seq_len).repeat(size, 1)
    tasks = torch.full((size, seq_len), -1, dtype=torch.int8)
    weights = torch.zeros((size, seq_len))
    lengths: list[int] = []
    for i, s in enumerate(sequences):
        ids[i], positions[i] = torch.from_numpy(s.ids), torch.from_numpy(s.positions)
        targets[i, :-1] = torch.from_numpy(s.labels[1:])
        tasks[i, :-1] = torch.from_numpy(s.tasks[1:])
        weights[i] = target_weights(targets[i], tasks[i], s.lengths, config)
        lengths += s.lengths
    lengths += [seq_len] * (size - len(sequences))
    tasks = torch.where(targets == IGNORED, -1, tasks)
    return MicroBatch(ids, targets, positions, tasks, weights, DocumentPlan.from_lengths(lengths))


def target_weights(targets: Tensor, tasks: Tensor, lengths: list[int], config: TrainJob) -> Tensor:
    """Weight of each target [seq_len]: loss.weight of its task, over its document's target count (`document`), its root
    (`sqrt`) or 1."""
    has_target = (targets != IGNORED).float()
    by_task = torch.tensor([config.loss.weight.get(t, 1.0) for t in TASKS])
    weights = has_target * by_task[tasks.long().clamp(min=0)]
    if config.loss.normalize != "token":
        document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        counts = torch.zeros(len(lengths)).index_add_(0, document, has_target).clamp(min=1)[document]
        weights /= counts if config.loss.normalize == "document" else counts.sqrt()
    return weights
