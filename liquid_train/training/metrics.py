"""One step's line in metrics.jsonl."""

from __future__ import annotations

import resource
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedModel

from liquid_train.checkpoint.progress import Progress
from liquid_train.data.batch import RankBatch
from liquid_train.data.damage import Damage
from liquid_train.data.loader import is_endless
from liquid_train.data.settings import DataConfig
from liquid_train.distributed.parallelize import World
from liquid_train.scaling.flops import block_parameters, peak_flops, step_flops
from liquid_train.vocabulary import Vocabulary


@dataclass(frozen=True)
class Compute:
    """What the FLOPs of a step are computed from. Made before sharding, because it reads parameter shapes."""

    blocks: int  # matrix parameters of the blocks
    head: int  # rows * width of the head
    attention_width: int  # heads * head_dim
    layers: int
    peak: float  # FLOP/s of one rank's device

    @classmethod
    def of(cls, lm: PreTrainedModel, vocabulary: Vocabulary, device: torch.device) -> Compute:
        c = lm.config
        width = c.num_attention_heads * (getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads)
        return cls(
            block_parameters(lm.model.layers),
            vocabulary.image_end * c.hidden_size,
            width,
            c.num_hidden_layers,
            peak_flops(device),
        )


@dataclass(frozen=True)
class StepResult:
    """What one step did; the same on all ranks."""

    loss: float  # weighted mean over the targets of the global batch, nats
    per_task: Tensor  # fp64 [4, tasks] on the CPU, as LossOutput's, over all ranks
    tasks: tuple[str, ...]  # their names
    router: float  # load-balancing loss of a mixture of experts, before its weight; 0 for other models
    grad_norm: float  # before clipping
    lr: float
    finite: bool  # loss and gradient are
    spike: bool  # the loss jumps (spikes.py)
    skipped: bool  # the optimizer made no step
    rewinds: bool  # a spike after which training goes back to a checkpoint, or at one leaves the batch out
    stop: bool  # some rank has been told to stop


@dataclass(frozen=True)
class BatchTotals:
    """Of the global batch, over all ranks."""

    documents: int
    efficiency: float  # share of the tokens that are not padding
    sum_squared_lengths: int  # of the documents: what attention costs
    damage: list[Damage]  # that some rank has met since the batch before
    epochs: dict[str, float]  # passes over each source so far
    source_documents: dict[str, int]
    source_tokens: dict[str, int]
    asked: dict[str, int]  # documents wanted of every source, since the processes started
    lost: dict[str, int]  # those of them that were not made
    dropped: dict[str, int]  # documents by reason, since the processes started; {} where it was not asked for


def batch_totals(batch: RankBatch, data: DataConfig, world: World, *, reasons: bool = True) -> BatchTotals:
    """Sum the ranks' parts of a global batch; a collective. reasons: with those of the documents left out, whose texts
    have to be gathered."""
    sum_squared_lengths = sum(n * n for s in batch.sequences.values() for n in s.lengths)
    names = list(data.sources)
    shares = [s.sources() for s in batch.sequences.values()]
    by_source = [
        *(batch.epochs.get(n, 0.0) for n in names),
        *(sum(s.get(n, (0, 0))[i] for s in shares) for i in (0, 1) for n in names),
        *(batch.asked.get(n, 0) for n in names),
        *(sum(count for reason, count in batch.lost.items() if reason.partition(": ")[0] == n) for n in names),
    ]
    counts = torch.tensor(
        [batch.documents, batch.padding, sum_squared_lengths, len(batch.damage), len(batch.dropped), *by_source],
        dtype=torch.float64,
    )  # on the host: a GPU need not be waited for
    world.sum(counts)
    documents, padding, sum_squared_lengths, damage, known = (int(n) for n in counts[:5].tolist())
    epochs, source_documents, source_tokens, asked, lost = (
        dict(zip(names, row, strict=True)) for row in counts[5:].view(5, -1).tolist()
    )
    return BatchTotals(
        documents,
        1 - padding / (data.global_batch * data.seq_len),
        sum_squared_lengths,
        all_damage(batch.damage, world) if damage else [],
        {
            k: round(n, 6) for k, n in epochs.items()
        },  # rounded, so that it does not depend on the ranks it was summed over
        {k: int(n) for k, n in source_documents.items()},
        {k: int(n) for k, n in source_tokens.items()},
        {k: int(n) for k, n in asked.items()},
        {k: int(n) for k, n in lost.items()},
        all_dropped(batch.dropped, world) if known and reasons else {},
    )


def all_dropped(own: dict[str, int], world: World) -> dict[str, int]:
    """Documents that all ranks left out, by reason; a collective."""
    parts: list[dict[str, int]] = [{}] * world.size
    dist.all_gather_object(parts, own)
    parts = parts[:: world.tensor]  # tensor-parallel neighbours have read the same data
    return {reason: sum(p.get(reason, 0) for p in parts) for reason in sorted({r for p in parts for r in p})}


def all_damage(own: list[Damage], world: World) -> list[Damage]:
    """What all ranks have found damaged, in their order; a collective."""
    parts: list[list[Damage]] = [[]] * world.size
    dist.all_gather_object(parts, own)
    return [entry for part in parts for entry in part]


def data_ended(batch: RankBatch, data: DataConfig, world: World) -> bool:
    """Whether no rank has a document left for this step; a collective, if the mixture can end at all."""
    if is_endless(data):
        return False
    ended = torch.tensor(int(batch.ended))
    dist.all_reduce(ended, op=dist.ReduceOp.MIN)
    return bool(ended)


def task_metrics(per_task: Tensor, names: Sequence[str]) -> dict[str, float]:
    """per_task [4, tasks], as in LossOutput, of the tasks `names` -> by task: loss, token accuracy, share of targets
    and of the loss."""
    loss, correct, count, weighted = per_task
    metrics = {}
    for i, task in enumerate(names):
        if count[i]:
            metrics[f"loss/{task}"] = float(loss[i] / count[i])
            metrics[f"accuracy/{task}"] = float(correct[i] / count[i])
            metrics[f"targets_share/{task}"] = float(count[i] / count.sum())
            metrics[f"loss_share/{task}"] = float(weighted[i] / weighted.sum().clamp(min=1e-9))
    return metrics


def speed_metrics(
    compute: Compute,
    world: World,
    *,
    tokens: int,
    targets: int,
    sum_squared_lengths: int,
    seconds: float,
    waited: float,
) -> dict[str, float]:
    """Throughput of all ranks, MFU (scaling/flops.py), share of the time spent waiting for data, this rank's peak
    memory."""
    flops = step_flops(
        compute.blocks, compute.head, compute.attention_width, compute.layers, tokens, targets, sum_squared_lengths
    )
    if world.device.type == "cuda":
        memory = torch.cuda.max_memory_allocated(world.device) / 2**30
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "tokens_per_second": tokens / seconds,
        "mfu": flops / seconds / (compute.peak * world.size),
        "data_wait_fraction": waited / seconds,
        "memory_gib": memory,
    }


def progress_metrics(progress: Progress) -> dict[str, Any]:
    """How far the run has come, its steps that were left out, and each source's share of the documents and tokens."""
    guard = progress.guard
    shares = {
        f"share/{unit}/{name}": n / max(1, sum(counts.values()))
        for unit, counts in (("documents", progress.source_documents), ("tokens", progress.source_tokens))
        for name, n in counts.items()
    }
    return {
        "step": progress.step,
        "tokens": progress.tokens,
        "documents": progress.documents,
        "skipped": progress.skipped,
        "spikes": guard.spikes,
        "rewinds": guard.rewinds,
        "left_out": guard.left_out,
        **shares,
    }


def step_metrics(
    totals: BatchTotals, result: StepResult, so_far: dict[str, Any], speed: dict[str, float]
) -> dict[str, Any]:
    """One line. so_far: progress_metrics after the step; speed: speed_metrics of it."""
    return {
        **so_far,
        "loss": result.loss,
        **task_metrics(result.per_task, result.tasks),
        **({"router_balance": result.router} if result.router else {}),
        "lr": result.lr,
        "grad_norm": result.grad_norm,
        **speed,
        "packing_efficiency": totals.efficiency,
        **{f"epoch/{name}": passes for name, passes in totals.epochs.items()},
        **{f"dropped/{reason}": n for reason, n in totals.dropped.items()},
    }
