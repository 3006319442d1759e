"""Held-out loss and token accuracy per task, over fixed documents, by the code of the training loss.

Every rank packs all documents in the same way and measures its share of the rows; each document's sums are kept in
fp64. So the numbers are the same for any number of ranks, and documents can be resampled for the intervals.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from liquid_train.data.batch import MicroBatch, collate
from liquid_train.data.loader import open_set
from liquid_train.data.mixture import Document, SourceReader
from liquid_train.data.packing import Sequence, join
from liquid_train.data.placement import longest_first
from liquid_train.data.settings import DataConfig
from liquid_train.data.tasks import find_task, task_names
from liquid_train.distributed.parallelize import World, reshard
from liquid_train.errors import UserError
from liquid_train.files import dispensable
from liquid_train.measurement.intervals import bootstrap, bootstrap_name
from liquid_train.measurement.measurement import Measurement, ModelHandle, Value, write_measurement
from liquid_train.measurement.provenance import Provenance, texts_digest
from liquid_train.model.attention import choose_kernel, implementation
from liquid_train.model.families import family_of
from liquid_train.model.loss import LossModule
from liquid_train.model.settings import LossConfig
from liquid_train.vocabulary import Vocabulary

RESAMPLES = 500


@dataclass(frozen=True)
class HeldoutSet:
    """Packed held-out documents, the same on every rank."""

    rows: list[Sequence]
    noted: dict[str, int]  # by source and reason: samples that were left out or shortened
    data: DataConfig
    loss: LossConfig
    seed: int
    micro_batch: int  # rows of a forward pass
    pad: int

    def batches(self, rank: int, ranks: int) -> Iterator[tuple[list[int], MicroBatch]]:
        """(numbers of the rows, their micro-batch) of one rank. Every rank gets the same number of micro-batches; the
        last ones may have no row."""
        size = self.micro_batch
        own = list(range(rank, len(self.rows), ranks))
        for start in range(0, len(range(0, len(self.rows), ranks)), size):  # as many as rank 0, which has the most
            numbers = own[start : start + size]
            yield numbers, collate([self.rows[n] for n in numbers], size, self.data, self.loss, self.pad)


def heldout_set(
    data: DataConfig,
    loss: LossConfig,
    seed: int,
    vocabulary: Vocabulary,
    vq_fingerprint: str,
    *,
    micro_batch: int,
    whole: bool = False,
    batches: int | None = None,
) -> HeldoutSet:
    """The documents of data.heldout, packed. Captions, prompts and questions are drawn once (epoch 0), and no caption
    is replaced by <unconditional>.

    whole: all samples instead of max_samples of each source. batches: only so many micro-batches of rows, chosen by
    `seed`.
    Raises UserError, with the source's name, for a folder that cannot be read or has codes of another VQ.
    """
    documents: list[Document] = []
    noted: Counter[str] = Counter()
    alike = replace(data, unconditional=0.0, image_loss=False)  # a task's loss means the same in every run
    for name, source in data.heldout.items():
        try:
            shards = open_set(data, source.path, vq_fingerprint, vocabulary.codebook_size)
        except UserError as error:
            raise UserError(f"data.heldout.{name}.path={source.path}: {error}") from error
        reader = SourceReader(name, source, shards, vocabulary.tokenizer, alike, 1, seed)
        documents += reader.first(shards.num_samples if whole or not source.max_samples else source.max_samples)
        noted.update({f"data.heldout.{name}: {reason}": count for reason, count in reader.dropped.items()})
    seq_len = data.seq_len
    bins = sum(len(d) for d in documents) // seq_len + 2
    placement, left = longest_first([d for d in documents if not d.splittable], bins, seq_len)
    left += placement.pour([d for d in documents if d.splittable], range(bins))
    rows = [join(p, seq_len, vocabulary.pad) for p in [*placement.placed, *alone(left, seq_len)] if p]
    if batches is not None:
        order = np.random.default_rng(seed).permutation(len(rows))
        rows = [rows[n] for n in sorted(order[: batches * micro_batch])]
    return HeldoutSet(rows, dict(noted), data, loss, seed, micro_batch, vocabulary.pad)


def alone(documents: list[Document], seq_len: int) -> list[list[Document]]:
    """Rows for documents that fitted no gap between others."""
    rows: list[list[Document]] = []
    for document in documents:
        while len(document) > seq_len:
            head, document = document.split(seq_len)
            rows.append([head])
        rows.append([document])
    return rows


@torch.no_grad()
def measure_heldout(root: LossModule, data: HeldoutSet, world: World, dtype: torch.dtype) -> Measurement:
    """heldout_loss/TASK in nats a target token, and heldout_accuracy/TASK; n counts tokens. dtype: what the model
    computes in, for the provenance. A collective of all ranks."""
    firsts = np.cumsum([0, *(row.documents for row in data.rows)])  # number of each row's first document
    sums = torch.zeros(3, int(firsts[-1]), dtype=torch.float64, device=world.device)
    for numbers, batch in data.batches(world.data_rank, world.data_size):
        output = root(batch.to(world.device))
        owners = torch.zeros(batch.targets.shape, dtype=torch.int64)  # document of each position
        for i, n in enumerate(numbers):
            row = data.rows[n]
            covered = np.repeat(np.arange(firsts[n], firsts[n + 1]), row.lengths[: row.documents])
            owners[i, : len(covered)] = torch.from_numpy(covered)
        chosen = owners.to(world.device).view(-1)[output.chosen]
        for total, values in zip(sums, (output.losses, output.correct, torch.ones_like(output.losses)), strict=True):
            total.index_add_(0, chosen, values.double())
    reshard(root)
    world.sum(sums)
    tasks = (
        np.concatenate([row.tasks[np.cumsum([0, *row.lengths])[: row.documents]] for row in data.rows])
        if data.rows
        else np.zeros(0)
    )
    provenance = Provenance(
        n=int(firsts[-1]),
        data=texts_digest([row.digest().hex() for row in data.rows]),
        dtype=str(dtype).removeprefix("torch."),
    )
    values = by_task(sums.cpu().numpy(), tasks, task_names(data.data), data.seed)
    return Measurement(values, provenance, warnings=warnings(data, tasks))


def by_task(sums: np.ndarray, tasks: np.ndarray, names: tuple[str, ...], seed: int) -> dict[str, Value]:
    """sums [3, documents]: of loss, of correct targets, of targets -> means over the targets of each task, with
    intervals from resampled documents. names: of the tasks, by number."""
    values = {}
    kind = f"{bootstrap_name(RESAMPLES, seed)}, of documents"
    for task in sorted(set(tasks.tolist())):
        own = sums[:, tasks == task]
        count = int(own[2].sum())
        for name, row in (("loss", own[0]), ("accuracy", own[1])) if count else ():
            low, high = bootstrap(own.shape[1], partial(mean_of, row, own[2]), seed=seed, resamples=RESAMPLES)
            values[f"heldout_{name}/{names[task]}"] = Value(float(row.sum()) / count, count, low, high, kind)
    return values


def mean_of(sums: np.ndarray, counts: np.ndarray, picked: np.ndarray) -> float:
    return float(sums[picked].sum() / max(counts[picked].sum(), 1))


def warnings(data: HeldoutSet, tasks: np.ndarray) -> list[str]:
    found = [f"{reason}, {count} of its samples" for reason, count in sorted(data.noted.items())]
    names = task_names(data.data)
    wanted = {find_task(s.task, f"data.heldout.{name}.task").name for name, s in data.data.heldout.items()}
    wanted -= {names[task] for task in set(tasks.tolist())}
    return found + [f"no document of {task} is among those that were measured" for task in sorted(wanted)]


def log_heldout(
    root: LossModule, data: HeldoutSet, world: World, step: int, out_dir: Path, dtype: torch.dtype
) -> dict[str, float]:
    """During training: {"val/loss/TASK", "val/accuracy/TASK"}. Rank 0 writes out_dir/evals/step-NNNNNNNN-heldout.json.
    A collective."""
    if not data.rows:
        return {}
    measured = measure_heldout(root, data, world, dtype)
    if world.main:
        with dispensable(f"evals: heldout of step {step}"):
            write_measurement(out_dir / "evals", "heldout", step, measured)
    return {key.replace("heldout_", "val/", 1): value.value for key, value in measured.values.items()}


def heldout(handle: ModelHandle, data: HeldoutSet) -> Measurement:
    """The held-out measurement of a plain model, outside training."""
    with packed(handle.model):
        root = LossModule.of(handle.model, handle.vocabulary, LossConfig(chunk=data.loss.chunk))
        return measure_heldout(
            root, data, World(handle.rank, handle.world_size, handle.model.device), handle.model.dtype
        )


@contextmanager
def packed(model: PreTrainedModel) -> Iterator[None]:
    """Have the model attend within packed documents, by the best kernel for its device."""
    config, before = model.config, model.config._attn_implementation
    family = family_of(config.model_type)
    softcap = family.attention_softcap(config)
    kernel = choose_kernel("auto", model.device, model.dtype, softcap, family.attention_sinks)
    config._attn_implementation = implementation(kernel)
    try:
        yield
    finally:
        config._attn_implementation = before
