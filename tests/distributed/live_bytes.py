"""Bytes of tensors that live on a rank when a micro-batch begins, for test_gradient_memory.py, which starts `main` on
every rank.

RESULT.json: {"live": [of every micro-batch of the second step, on rank 0], "shard": bytes of rank 0's parameters,
"whole": bytes of all parameters}.
"""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from liquid_train.config.compose import load
from liquid_train.distributed.parallelize import process_group
from liquid_train.training.trainer import Trainer

CPU = torch.device("cpu")


def live_bytes() -> int:
    """Of all tensors that exist and their gradients, each storage once; what FSDP has freed has none."""
    gc.collect()
    tensors = [t for t in gc.get_objects() if issubclass(type(t), torch.Tensor)]
    tensors += [t.grad for t in tensors if t.is_leaf and t.grad is not None]
    plain = [t.to_local() if isinstance(t, DTensor) else t for t in tensors]
    return sum(
        {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in plain if t.device == CPU}.values()
    )


def main(overrides: list[str], result: Path) -> None:
    config = load("train", overrides)
    with process_group(config.parallel.tensor) as world:
        trainer = Trainer(config, world)
        found: list[int] = []
        trainer.root.register_forward_pre_hook(lambda *_: found.append(live_bytes()))
        for batch in trainer.loader:
            trainer.step(batch)
            trainer.progress.step += 1
        parameters: list[Any] = list(trainer.root.parameters())
        shard = sum(p.to_local().numel() * 4 for p in parameters)
        whole = sum(p.numel() * 4 for p in parameters)
        if world.main:
            last = found[len(found) // 2 :]  # of two steps; the optimizer has its state since the first
            result.write_text(json.dumps({"live": last, "shard": shard, "whole": whole}))
        trainer.close()
        del trainer, parameters
