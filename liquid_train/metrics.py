"""One step's line of metrics.jsonl: what the names of DESIGN section 4 hold."""

from __future__ import annotations

import resource
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from transformers import PreTrainedModel

from liquid_train.config import TASKS, DataConfig
from liquid_train.data.loader import RankBatch
from liquid_train.parallel import World
from liquid_train.scaling.flops import block_parameters, peak_flops, step_flops
from liquid_train.vocabulary import Vocabulary


@dataclass(frozen=True)
class Compute:
    """What FLOPs are counted from. Built before sharding: it reads parameter shapes."""

    blocks: int  # matrix parameters of the blocks
    head: int  # rows * width of the head
    attention_width: int  # heads * head_dim
    layers: int
    peak: float  # FLOP/s of one rank's device

    @classmethod
    def of(cls, lm: PreTrainedModel, vocabulary: Vocabulary, device: torch.device) -> Compute:
        c = lm.config
        width = c.num_attention_heads * (getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads)
        return cls(block_parameters(lm.model.layers), vocabulary.image_end * c.hidden_size, width, c.num_hidden_layers, peak_flops(device))


def batch_totals(batch: RankBatch, data: DataConfig, world: World) -> tuple[int, float, int, int]:
    """Of the global batch: (documents, share of tokens that are no padding, sum of squared document lengths, damaged samples so far).

    A collective.
    """
    squares = sum(n * n for s in batch.sequences.values() for n in s.lengths)
    counts = torch.tensor([batch.documents, batch.padding, squares, batch.damaged], dtype=torch.float64, device=world.device)
    dist.all_reduce(counts)
    documents, padding, squares, damaged = (int(n) for n in counts.tolist())
    return documents, 1 - padding / (data.global_batch * data.seq_len), squares, damaged


def task_metrics(per_task: torch.Tensor) -> dict[str, float]:
    """per_task [3, tasks]: sums of loss, of correct, and counts -> loss, token accuracy and share of targets by task."""
    loss, correct, count = per_task
    metrics = {}
    for i, task in enumerate(TASKS):
        if count[i]:
            metrics[f"loss/{task}"] = float(loss[i] / count[i])
            metrics[f"accuracy/{task}"] = float(correct[i] / count[i])
            metrics[f"targets/{task}"] = float(count[i] / count.sum())
    return metrics


def speed_metrics(compute: Compute, world: World, *, tokens: int, targets: int, squares: int, seconds: float, waited: float) -> dict[str, float]:
    """Throughput over all ranks, MFU (see scaling/flops.py), share of the time spent waiting for data, this rank's peak memory."""
    flops = step_flops(compute.blocks, compute.head, compute.attention_width, compute.layers, tokens, targets, squares)
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


def step_metrics(batch: RankBatch, result: dict[str, Any], progress: dict[str, int], efficiency: float, lr: float, speed: dict[str, float]) -> dict[str, Any]:
    """One line. progress: step, tokens, documents, skipped so far; result: what train_step returned."""
    return {
        **progress,
        "loss": result["loss"],
        **task_metrics(result["per_task"]),
        "lr": lr,
        "grad_norm": result["grad_norm"],
        **speed,
        "packing_efficiency": efficiency,
        **{f"epoch/{name}": epochs for name, epochs in batch.epochs.items()},
        **{f"dropped/{reason}": n for reason, n in batch.dropped.items()},
    }
