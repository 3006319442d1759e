"""A rank's part of a global batch, and its micro-batches: tensors with targets, loss weights and a document plan."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from liquid_train.data.damage import Damage
from liquid_train.data.document_plan import DocumentPlan, moved
from liquid_train.data.packing import Sequence
from liquid_train.data.sequence_pieces import IGNORED
from liquid_train.data.settings import DataConfig
from liquid_train.data.stream_state import StreamState
from liquid_train.data.tasks import FIRST, task_names
from liquid_train.model.settings import LossConfig


@dataclass(frozen=True)
class MicroBatch:
    """Tensors of n sequences. Targets are shifted: targets[i, j] is what position j of sequence i predicts."""

    input_ids: Tensor  # [n, seq_len] int64
    targets: Tensor  # [n, seq_len] int64, -100 = none
    position_ids: Tensor  # [n, seq_len] int64
    tasks: Tensor  # [n, seq_len] int8, task of the target; -1 = none
    weights: Tensor  # [n, seq_len] fp32, the target's share in the loss
    chosen: Tensor  # [T] int64: where the T targets are in the flattened n * seq_len positions
    plan: DocumentPlan
    task_names: tuple[str, ...] = FIRST  # what the numbers in `tasks` stand for
    inside: Tensor | None = None  # [n, seq_len] bool: a document's token, not padding; None: all are

    def to(self, device: torch.device) -> MicroBatch:
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        tensors: dict[str, Any] = {name: moved(v, device) for name, v in own.items() if isinstance(v, Tensor)}
        return replace(self, **tensors, plan=self.plan.to(device))


def places_of(targets: Tensor) -> Tensor:
    """[T] int64: the flattened positions that have a target. Found on the host: on a GPU their number is waited for."""
    return (targets != IGNORED).view(-1).nonzero().squeeze(1)


@dataclass
class RankBatch:
    """One rank's part of a global batch."""

    step: int  # 0-based
    sequences: dict[int, Sequence]
    states: dict[int, StreamState]
    epochs: dict[str, float]
    dropped: dict[str, int] = field(default_factory=dict)  # documents that were not made, by "source: reason", so far
    damage: list[Damage] = field(default_factory=list)  # that its workers have met since the batch before
    asked: dict[str, int] = field(default_factory=dict)  # documents wanted of every source so far
    lost: dict[str, int] = field(default_factory=dict)  # those of them that were not made, by "source: reason"
    ended: bool = True  # none of the rank's streams has a document left
    interrupted: bool = False  # it was not read: the rank has been told to stop meanwhile

    @property
    def documents(self) -> int:
        return sum(s.documents for s in self.sequences.values())

    @property
    def padding(self) -> int:
        return sum(s.padding for s in self.sequences.values())

    def digests(self) -> dict[int, bytes]:
        return {g: s.digest() for g, s in self.sequences.items()}


def batch_digest(digests: dict[int, bytes]) -> str:
    """Digest of a global batch, from those of its sequences by number."""
    return hashlib.sha256(b"".join(digests[g] for g in sorted(digests))).hexdigest()


def owner(stream: int, world: int) -> int:
    """The rank that a canonical stream belongs to."""
    return stream % world


def micro_batches(
    data: DataConfig, loss: LossConfig, batch: RankBatch, *, micro_batch: int, world: int, pad: int
) -> list[MicroBatch]:
    """A rank's sequences in micro-batches of up to `micro_batch`. Every rank of `world` has the same number of them, as
    collectives must match; empty sequences without targets complete the last one."""
    count = data.streams or data.global_batch
    per_rank = [0] * world
    for g in range(batch.step * data.global_batch, (batch.step + 1) * data.global_batch):
        per_rank[owner(g % count, world)] += 1
    needed = math.ceil(max(per_rank) / micro_batch)
    size = min(micro_batch, max(per_rank))
    sequences = [batch.sequences[g] for g in sorted(batch.sequences)]
    return [collate(sequences[i * size : (i + 1) * size], size, data, loss, pad) for i in range(needed)]


def collate(sequences: list[Sequence], size: int, data: DataConfig, loss: LossConfig, pad: int) -> MicroBatch:
    """Stack `size` sequences (where there are fewer, empty ones without targets) and shift labels into targets."""
    seq_len, names = data.seq_len, task_names(data)
    by_task = torch.tensor([loss.weight.get(name, 1.0) for name in names])
    ids = torch.full((size, seq_len), pad, dtype=torch.int64)
    targets = torch.full((size, seq_len), IGNORED, dtype=torch.int64)
    positions = torch.arange(seq_len).repeat(size, 1)
    tasks = torch.full((size, seq_len), -1, dtype=torch.int8)
    weights = torch.zeros((size, seq_len))
    inside = torch.zeros((size, seq_len), dtype=torch.bool)
    lengths: list[int] = []
    for i, s in enumerate(sequences):
        ids[i], positions[i] = torch.from_numpy(s.ids), torch.from_numpy(s.positions)
        inside[i, : seq_len - s.padding] = True
        targets[i, :-1] = torch.from_numpy(s.labels[1:])
        tasks[i, :-1] = torch.from_numpy(s.tasks[1:])
        weights[i] = target_weights(targets[i], by_task[tasks[i].long().clamp(min=0)], s.lengths, loss.normalize)
        lengths += s.lengths
    lengths += [seq_len] * (size - len(sequences))
    tasks = torch.where(targets == IGNORED, -1, tasks)
    plan = DocumentPlan.from_lengths(lengths)
    return MicroBatch(ids, targets, positions, tasks, weights, places_of(targets), plan, names, inside)


def target_weights(targets: Tensor, by_task: Tensor, lengths: list[int], normalize: str) -> Tensor:
    """Weight of each target, fp32 [seq_len]: that of its task, `by_task` [seq_len], divided by its document's number of
    targets (loss.normalize=document), by the root of that (sqrt), or by 1 (token)."""
    has_target = (targets != IGNORED).float()
    weights = has_target * by_task
    if normalize != "token":
        document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        counts = torch.zeros(len(lengths)).index_add_(0, document, has_target).clamp(min=1)[document]
        weights /= counts if normalize == "document" else counts.sqrt()
    return weights
