"""Held-out loss and token accuracy per task, over fixed documents, with the training loss's own code on all ranks."""

from __future__ import annotations

import torch

from liquid_train.config import TASKS, TrainJob
from liquid_train.data.loader import MicroBatch, collate, open_set
from liquid_train.data.mixture import Document, SourceReader
from liquid_train.data.packing import best_fit, join, pour
from liquid_train.loss import LossModule
from liquid_train.parallel import World, reshard
from liquid_train.vocabulary import Vocabulary


def heldout_batches(config: TrainJob, vocabulary: Vocabulary, world: World, vq_fingerprint: str) -> list[MicroBatch]:
    """This rank's share of the documents of data.heldout, packed; every rank gets as many micro-batches.

    Captions, prompts and questions are drawn once (epoch 0), and no caption is replaced by <unconditional>.
    """
    documents: list[Document] = []
    for name, source in config.data.heldout.items():
        try:
            shards = open_set(config, source.path, vq_fingerprint, vocabulary.codebook_size)
        except ValueError as error:
            raise ValueError(f"data.heldout.{name}.path={source.path}: {error}") from error
        reader = SourceReader(name, source, shards, vocabulary.tokenizer, config.data, 1, config.seed, unconditional=0.0)
        documents += reader.first(source.max_samples or shards.num_samples)
    seq_len, size = config.data.seq_len, config.train.micro_batch
    bins = sum(len(d) for d in documents) // seq_len + 2
    placed, left = best_fit([d for d in documents if not d.splittable], bins, seq_len)
    left += pour([d for d in documents if d.splittable], placed, seq_len)
    sequences = [join(p, seq_len, vocabulary.pad) for p in placed if p]
    own = sequences[world.data_rank :: world.data_size]
    needed = -(-len(sequences[:: world.data_size]) // size)  # rank 0 has the most
    return [collate(own[i * size : (i + 1) * size], size, config, vocabulary.pad) for i in range(needed)]


@torch.no_grad()
def heldout_loss(root: LossModule, batches: list[MicroBatch], world: World) -> dict[str, float]:
    """{"val/loss/<task>": nats per target token, "val/accuracy/<task>": share} over all ranks; a collective."""
    sums = torch.zeros(4, len(TASKS), dtype=torch.float64, device=world.device)
    for batch in batches:
        sums += root(batch.to(world.device)).per_task
    reshard(root)
    world.sum(sums)
    loss, correct, count, _ = sums.cpu()
    metrics = {}
    for i, task in enumerate(TASKS):
        if count[i]:
            metrics[f"val/loss/{task}"] = float(loss[i] / count[i])
            metrics[f"val/accuracy/{task}"] = float(correct[i] / count[i])
    return metrics
