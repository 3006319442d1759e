"""Train tiny models of all families in one layout of ranks, for test_layouts.py, which starts `main` on every rank.

JOBS.json: [{"name", "overrides"}]; RESULT.json: {name: [[loss, gradient norm] of every step]}. The job's name begins
with `plain` for the reference: a transformers model with eager attention and full logits, every document alone, torch's
own AdamW and clipping.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from liquid_train.config.compose import load
from liquid_train.config.schema import TrainJob
from liquid_train.distributed.parallelize import World, process_group
from liquid_train.generate.live_model import live_model
from liquid_train.optim.schedule import learning_rate
from liquid_train.training.trainer import Trainer


def ours(config: TrainJob, world: World) -> list[list[float]]:
    trainer = Trainer(config, world)
    found = []
    for batch in trainer.loader:
        result = trainer.step(batch)
        trainer.progress.step += 1
        found.append([result.loss, result.grad_norm])
    trainer.close()
    return found


def plain(config: TrainJob, world: World) -> list[list[float]]:
    trainer = Trainer(config, world)
    with live_model(trainer.root, trainer.root.lm, world.device) as live:
        model = copy.deepcopy(live.model).train().requires_grad_(True)
    model.set_attn_implementation("eager")
    options = config.optimizer
    decayed, others = [[p for p in model.parameters() if (p.ndim > 1) == matrix] for matrix in (True, False)]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": options.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    first, second = options.betas
    optimizer = torch.optim.AdamW(
        groups, lr=options.lr, betas=(first, second), eps=options.eps, foreach=False, fused=False
    )
    found = []
    for batch in trainer.loader:
        total, count = torch.zeros(()), 0
        for sequence in batch.sequences.values():
            ids, labels = torch.from_numpy(sequence.ids), torch.from_numpy(sequence.labels)
            start = 0
            for length in sequence.lengths:
                end = start + length
                logits = model(input_ids=ids[None, start:end]).logits[0, :-1, : trainer.vocabulary.image_end]
                total = total + F.cross_entropy(logits, labels[start + 1 : end], reduction="sum", ignore_index=-100)
                count += int((labels[start + 1 : end] != -100).sum())
                start = end
        (total / count).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), options.grad_clip)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(batch.step, trainer.steps, options.lr, config.schedule)
        optimizer.step()
        optimizer.zero_grad()
        found.append([float(total.detach() / count), float(norm)])
    trainer.close()
    return found


def main(jobs: Path, result: Path) -> None:
    todo = json.loads(jobs.read_text())
    configs = {job["name"]: load("train", job["overrides"]) for job in todo}
    found = {}
    with process_group(next(iter(configs.values())).parallel.tensor) as world:
        for name, config in configs.items():
            found[name] = (plain if name.startswith("plain") else ours)(config, world)
        if world.main:
            result.write_text(json.dumps(found))
