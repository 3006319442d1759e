"""Bytes of tensors that live on a rank at every point of a step, without those that are no part of the model (the image
tokenizer's), for test_memory.py, which starts `main` on every rank.

RESULT.json, of rank 0's second step (the optimizer has its state since the first): {"begin": [of every micro-batch],
"forward": [after every micro-batch's forward], "gradients": before the optimizer's step, "end": after it, "shard":
bytes of rank 0's parameters, "gathered": of those that stay gathered between forward and backward, "whole": of all}.
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
    gc.freeze()  # what was imported has no tensors of the run, and is long to search
    with process_group(config.parallel.tensor) as world:
        trainer = Trainer(config, world)
        before = live_bytes()
        found: dict[str, list[int]] = {"begin": [], "forward": [], "gradients": [], "end": []}
        trainer.root.register_forward_pre_hook(lambda *_: found["begin"].append(live_bytes()), prepend=True)
        trainer.root.register_forward_hook(lambda *_: found["forward"].append(live_bytes()))
        trainer.optimizer.register_step_pre_hook(lambda *_: found["gradients"].append(live_bytes()))
        for batch in trainer.loader:
            trainer.step(batch)
            trainer.progress.step += 1
            found["end"].append(live_bytes())
        parameters: list[Any] = list(trainer.root.parameters())
        lm: Any = trainer.root.lm
        kept = [p for name, p in lm.named_parameters() if not name.startswith("model.layers.")]
        kept += list(lm.model.layers[-1].parameters())
        sizes = {
            "shard": sum(p.to_local().numel() * 4 for p in parameters),
            "gathered": sum(p.numel() * 4 for p in kept),
            "whole": sum(p.numel() * 4 for p in parameters),
        }
        others = before - sizes["shard"]
        if world.main:
            last = {name: [n - others for n in values[len(values) // 2 :]] for name, values in found.items()}
            result.write_text(json.dumps({**last, **sizes}))
        trainer.close()
        del trainer, parameters, lm, kept
