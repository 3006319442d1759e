"""Evaluation during training: the held-out loss, and what evals/periodic.py measures on the live model."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule

from liquid_train.checkpoint import folder as checkpoint
from liquid_train.config.schema import TrainJob
from liquid_train.data.tasks import find_task
from liquid_train.distributed.free_memory import free_bytes
from liquid_train.distributed.parallelize import World, compute_dtype
from liquid_train.generate.live_model import live_model
from liquid_train.image_tokenizer.base import ImageTokenizer
from liquid_train.model.backbone import ModelCard
from liquid_train.model.loss import LossModule
from liquid_train.training.heldout import heldout_set, log_heldout
from liquid_train.vocabulary import Vocabulary

log = logging.getLogger(__name__)

ROOM = 0.75  # share of the free memory that the weights may take: the rest is for keys, values and logits


class PeriodicEvaluation:
    """Measures a model while it trains. The held-out documents are packed once, when this is made."""

    def __init__(
        self, config: TrainJob, vocabulary: Vocabulary, image_tokenizer: ImageTokenizer, card: ModelCard, world: World
    ) -> None:
        self.config, self.vocabulary, self.image_tokenizer, self.card = config, vocabulary, image_tokenizer, card
        self.world, self.dir = world, Path(config.run.dir)
        self._told = False
        self.heldout = heldout_set(
            config.data,
            config.loss,
            config.seed,
            vocabulary,
            image_tokenizer.fingerprint,
            micro_batch=config.train.micro_batch,
        )

    def measure(self, root: LossModule, step: int, last: bool) -> dict[str, Any]:
        """Metrics by the name they are logged under; with `last`, those that are not due too. A collective of all
        ranks."""
        metrics: dict[str, Any] = log_heldout(
            root, self.heldout, self.world, step, self.dir, compute_dtype(self.config.parallel)
        )
        # without <unconditional> in training there is nothing for guidance to steer away from
        settings = self.config.evals if self.card.null_prompt else replace(self.config.evals, guidance=1.0)
        device, sharded = self.world.device, self._sharded(root)
        with live_model(root, root.lm, device, sharded=sharded) as live, on_device(self.image_tokenizer, device):
            metrics |= import_module("evals.periodic").evaluate(
                live.model,
                self.vocabulary,
                self.image_tokenizer,
                settings,
                sets=heldout_images(self.config),
                grid=tuple(self.card.grid),
                prompt=self.card.prompt,
                step=step,
                out_dir=self.dir,
                rank=self.world.rank,
                world_size=self.world.size,
                last=last,
                multiratio=self.card.sizes,
                settle=live.settle,
            )
        return metrics

    def _sharded(self, root: LossModule) -> bool:
        """Whether blocks are gathered one by one, because the whole model does not fit on some rank; a collective."""
        if not isinstance(root, FSDPModule):
            return False
        if self.config.evals.weights != "auto":
            return self.config.evals.weights == "sharded"
        needed = sum(p.numel() for p in root.parameters()) * compute_dtype(self.config.parallel).itemsize
        free = torch.tensor(free_bytes(self.world.device), dtype=torch.int64)
        dist.all_reduce(free, op=dist.ReduceOp.MIN)
        sharded = needed > ROOM * int(free)
        if sharded and self.world.main and not self._told:
            self._told = True
            log.info(
                f"evaluation: the whole model takes {needed / 2**30:.1f} GiB on every rank, where only "
                f"{int(free) / 2**30:.1f} GiB are free: its blocks are gathered one by one, which takes longer "
                "(evals.weights)"
            )
        return sharded


@contextmanager
def on_device(image_tokenizer: ImageTokenizer, device: torch.device) -> Iterator[None]:
    """Have it decode there: 512-pixel images take a CPU's thread a second each. After that its memory is free again."""
    before = image_tokenizer.device
    image_tokenizer.to(device)
    try:
        yield
    finally:
        image_tokenizer.to(before)


def heldout_images(config: TrainJob) -> str | None:
    """Path of the held-out set whose questions, captions and images are used while training: one with questions, else
    one with images."""
    tasks = [(s.path, find_task(s.task, f"data.heldout.{name}.task")) for name, s in config.data.heldout.items()]
    asked = [path for path, task in tasks if task.asks_questions]
    with_images = [path for path, t in tasks if t.generation and "image" in (t.generation.given, t.generation.makes)]
    return next(iter([*asked, *with_images]), None)


def record_score(config: TrainJob, step: int, metrics: dict[str, Any]) -> None:
    """Record the number that the best checkpoint is chosen by, where checkpoint.best names one. Where that cannot be
    done, log why: training goes on."""
    metric = config.checkpoint.best
    if metric is None:
        return
    value = metrics.get(metric, math.nan)
    if not math.isfinite(value):
        log.warning(f"step {step} has no score: checkpoint.best={metric} was not measured, or is not a number")
        return
    try:
        checkpoint.note_score(Path(config.run.dir), step, metric, config.checkpoint.best_is, value)
    except OSError as error:
        log.warning(
            f"step {step}: its score could not be noted ({error}). Training goes on; the best checkpoint is then one "
            "of the others."
        )
