"""Training steps of `liquid train` against Hugging Face's Trainer: the same model, documents, optimizer, precision and
threads.

    padded   Trainer as it is published for Liquid: documents in random order, right padding to the longest of a batch,
             an attention
             mask, all logits, labels -100 where there is no loss; a batch has as many documents as ours has in a
             forward pass
    packed   Trainer with transformers' DataCollatorWithFlattening: the rows that ours packs, position ids that restart
             and no mask,
             all logits; one row a forward pass, as two rows in one would double the work of its block-diagonal mask
    ours     BatchLoader, LossModule and FSDP2 on one rank through train.py's own step, with its metrics

Every measurement is a process of its own. It trains one step over the first global batch, whose loss must be the same
in all three, and is then timed over the documents of the next --steps global batches. All get them read and tokenized,
ours and packed also packed, from a list in memory: in a real run other processes do that, and benchmarks.packing times
it. Collating counts.
The three are interleaved --runs times; the table has the medians. Next to the time on the clock stands the processor's:
with one thread the two are the same on a quiet machine, and the processor's still tells something on a busy one.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    DataCollatorWithFlattening,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from benchmarks.machine import machine
from data_prep import tokenize
from liquid_train.config.compose import load
from liquid_train.config.schema import TrainJob
from liquid_train.data.packing import Sequence as Row
from liquid_train.data.sequence_pieces import IGNORED
from liquid_train.distributed.parallelize import process_group
from liquid_train.generate.live_model import live_model
from liquid_train.training.trainer import Trainer as OurTrainer

WAYS = ("padded", "packed", "ours")
TOLERANCE = 1e-4  # of the first step's loss, absolute
Document = dict[str, list[int]]  # input_ids and labels, unshifted, -100 = no loss
# loss of step 1; of the steps after it: seconds, cpu_seconds, documents, tokens, positions (padding included)
Measured = dict[str, float]


class Stopwatch:
    """Seconds since it was made, on the clock and of this process's threads on the processor."""

    def __init__(self) -> None:
        self._clock, self._cpu = time.perf_counter(), time.process_time()

    def read(self) -> Measured:
        return {"seconds": time.perf_counter() - self._clock, "cpu_seconds": time.process_time() - self._cpu}


def quickstart(data: Path, steps: int, run_dir: Path, overrides: Sequence[str] = ()) -> TrainJob:
    """conf/experiment/quickstart's model in one process, every target counted alike and AdamW as Trainer has them.

    The mixture is images, captions, five questions an image and text: without the second set of questions, as when the
    figures of docs/performance.md were first measured."""
    sources = {"text": "text-train", "t2i": "images-train", "i2t": "images-train", "vqa": "images-train"}
    plain = [
        "loss.weight={vqa:1.0,i2t:1.0,image:1.0}",
        "optimizer=adamw",
        "~data.sources.questions",
        "data.sources.vqa={weight:4,questions_per_document:5}",
        "data.image_loss=false",
        "data.workers=0",
        "launch.cpu_nproc=1",
        "schedule=constant",
        "schedule.warmup=0",
        "evals.every=0",
    ]
    paths = [f"data.sources.{name}.path={data / folder}" for name, folder in sources.items()]
    config = load(
        "train", ["experiment=quickstart", *plain, *paths, *overrides, f"train.steps={steps}", f"run.dir={run_dir}"]
    )
    assert isinstance(config, TrainJob)
    return config


def make_shards(folder: Path) -> None:
    """The training sets of the quickstart, each image once."""
    for name, source in (("images-train", "easy_vqa"), ("text-train", "python_docs")):
        tokenize.run(
            load(
                "tokenize",
                [
                    f"tokenize.source={source}",
                    "tokenize.split=train",
                    f"tokenize.output={folder / name}",
                    "tokenize.progress=false",
                ],
            )
        )


def ours(config: TrainJob) -> Measured:
    """Train as train.py does; evaluation and checkpoints are left out."""
    documents = tokens = positions = 0
    with process_group() as world:
        trainer = OurTrainer(config, world)
        loss, watch = 0.0, Stopwatch()
        for batch in list(trainer.loader):
            result = trainer.step(batch)
            trainer.log(batch, result)
            if batch.step == 0:
                loss, watch = result.loss, Stopwatch()
                continue
            documents += batch.documents
            positions += len(batch.sequences) * config.data.seq_len
            tokens += len(batch.sequences) * config.data.seq_len - batch.padding
        spent = watch.read()
        trainer.close()
    return {"loss": loss, **spent, "documents": documents, "tokens": tokens, "positions": positions}


def start(config: TrainJob) -> tuple[PreTrainedModel, int, list[list[list[Document]]]]:
    """What ours would train: a plain transformers model with the same weights, the padding id, and the documents
    [step][row]."""
    with process_group() as world:
        trainer = OurTrainer(config, world)
        rows = [[documents(s) for _, s in sorted(batch.sequences.items())] for batch in trainer.loader]
        with live_model(trainer.root, trainer.root.lm, world.device) as live:
            model = copy.deepcopy(live.model)
        pad = trainer.vocabulary.pad
        trainer.close()
    model.set_attn_implementation("sdpa")
    model.config.use_cache = False  # with a cache, transformers does not see that position ids restart
    return model.train().requires_grad_(True), pad, rows


def documents(row: Row) -> list[Document]:
    """The documents of a packed row, its padding left out."""
    ends = np.cumsum(row.lengths)
    parts = zip(np.split(row.ids, ends), np.split(row.labels, ends), strict=True)
    return [{"input_ids": ids.tolist(), "labels": labels.tolist()} for ids, labels in islice(parts, row.documents)]


class Padded:
    """Collator: right padding to the longest document of the batch, attention mask, labels -100."""

    def __init__(self, pad: int) -> None:
        self.pad, self.positions = pad, 0

    def __call__(self, batch: Sequence[Document]) -> dict[str, torch.Tensor]:
        ids, labels = ([torch.tensor(d[key]) for d in batch] for key in ("input_ids", "labels"))
        padded = pad_sequence(ids, batch_first=True, padding_value=self.pad)  # [documents, longest]
        self.positions += padded.numel()
        mask = pad_sequence([torch.ones_like(i) for i in ids], batch_first=True)
        return {
            "input_ids": padded,
            "attention_mask": mask,
            "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
        }


class Flattened:
    """Collator of rows of documents: transformers' own, which lays all documents of the batch side by side."""

    def __init__(self) -> None:
        self.flatten, self.positions = DataCollatorWithFlattening(), 0

    def __call__(self, batch: Sequence[dict[str, list[Document]]]) -> dict[str, torch.Tensor]:
        flat = self.flatten([document for row in batch for document in row["documents"]])
        self.positions += flat["input_ids"].numel()
        return flat


class Clock(TrainerCallback):
    """Time between Trainer's first batch and its last step: setting it up does not count."""

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.watch = Stopwatch()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.spent = self.watch.read()


def fit(
    model: PreTrainedModel,
    items: list[Any],
    collator: Callable[..., Any],
    batch: int,
    accumulate: int,
    config: TrainJob,
) -> tuple[float, Measured]:
    """One epoch of Trainer over items, in random order -> (mean loss of its steps, what it took)."""
    o, clock = config.optimizer, Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=1,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulate,
            seed=config.seed,
            optim="adamw_torch_fused",
            learning_rate=o.lr,
            weight_decay=o.weight_decay,
            adam_beta1=o.betas[0],
            adam_beta2=o.betas[1],
            adam_epsilon=o.eps,
            max_grad_norm=o.grad_clip,
            lr_scheduler_type="constant",
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=torch.cuda.is_available(),
        )
        trainer = Trainer(model=model, args=arguments, train_dataset=items, data_collator=collator, callbacks=[clock])
        trainer.remove_callback(PrinterCallback)
        loss = trainer.train().training_loss
    return loss, clock.spent


def theirs(way: str, config: TrainJob, batch: int | None = None) -> Measured:
    """As `ours`, by Trainer: padded batches of `batch` documents (None: as many as ours has in a forward pass), or
    packed rows.

    A step has as many documents as ours has on average.
    """
    model, pad, steps = start(config)
    flat = [[d for row in rows for d in row] for rows in steps]
    counts = [len(d) for d in flat]
    timed = [d for step in flat[1:] for d in step]
    if way == "padded":
        first, rest = flat[0], timed
        batch = batch or round(statistics.mean(counts[1:]) * config.train.micro_batch / config.data.global_batch)
        accumulate = [math.ceil(counts[0] / batch), max(1, round(statistics.mean(counts[1:]) / batch))]
        collators = [Padded(pad), Padded(pad)]
    else:
        first, rest = (
            [{"documents": row} for row in steps[0]],
            [{"documents": row} for rows in steps[1:] for row in rows],
        )
        batch, accumulate, collators = 1, [len(steps[0])] * 2, [Flattened(), Flattened()]
    loss, _ = fit(model, first, collators[0], batch, accumulate[0], config)
    _, spent = fit(model, rest, collators[1], batch, accumulate[1], config)
    tokens = sum(len(d["input_ids"]) for d in timed)
    return {"loss": loss, **spent, "documents": len(timed), "tokens": tokens, "positions": collators[1].positions}


def measure(way: str, config: TrainJob, batch: int | None = None) -> Measured:
    """Train by one of WAYS in this process."""
    return ours(config) if way == "ours" else theirs(way, config, batch)


def measured_apart(way: str, args: argparse.Namespace, data: Path) -> Measured:
    """`measure` in a process of its own."""
    options = [
        "--only",
        way,
        "--data",
        str(data),
        "--steps",
        str(args.steps),
        *(["--batch", str(args.batch)] if args.batch else []),
    ]
    command = [sys.executable, "-m", "benchmarks.hf_trainer", *options, *args.overrides]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(
            f"benchmarks.hf_trainer: {shlex.join(command)} ended with {done.returncode}; its own message stands above"
        )
    found: Measured = json.loads(done.stdout.splitlines()[-1])
    return found


def assert_equal_losses(losses: dict[str, float]) -> None:
    """The three train the same step: otherwise their times cannot be compared."""
    assert all(math.isfinite(loss) for loss in losses.values()), losses
    assert max(losses.values()) - min(losses.values()) <= TOLERANCE, (
        f"step 1 over the same documents has other losses: {losses}"
    )


def table(found: dict[str, list[Measured]]) -> list[str]:
    """Lines: medians of every way, and how many times as fast ours is."""
    clock, cpu = (
        {way: statistics.median(f[key] for f in runs) for way, runs in found.items()}
        for key in ("seconds", "cpu_seconds")
    )
    lines = [f"{'':6}  documents/s  tokens/s  no padding  step-1 loss  ours is  by CPU time   seconds of each run"]
    for way, runs in found.items():
        one, seconds = runs[0], clock[way]
        ratios = f"{seconds / clock['ours']:6.2f}x  {cpu[way] / cpu['ours']:10.2f}x"
        rates = (
            f"{one['documents'] / seconds:11.1f}  {one['tokens'] / seconds:8,.0f}  "
            f"{one['tokens'] / one['positions']:10.1%} "
            f" {one['loss']:11.6f}"
        )
        each = ", ".join(f"{f['seconds']:.2f}" for f in runs)
        lines.append(f"{way:6}  {rates}  {ratios}   {each}")
    return lines


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.hf_trainer",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data",
        type=Path,
        help="folder with the quickstart's images-train and text-train; default: made in a temporary folder",
    )
    parser.add_argument("--steps", type=int, default=20, help="global batches that are timed (default 20)")
    parser.add_argument("--runs", type=int, default=5, help="rounds of all three (default 5)")
    parser.add_argument(
        "--batch", type=int, help="documents of a padded forward pass (default: as many as ours has on average)"
    )
    parser.add_argument(
        "--only", choices=WAYS, help="measure one of the three in this process and print a line of JSON"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="other settings than the quickstart's, as liquid train takes them",
    )
    args = parser.parse_args(argv)
    for name in ("steps", "runs", "batch"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name} {value}: must be 1 or more")
    if find_spec("accelerate") is None:
        parser.error("Trainer needs accelerate: pip install -c constraints.txt accelerate (or pip install '.[bench]')")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = args.data or folder
        try:
            if args.data is None:
                make_shards(folder)
            if args.only:
                print(
                    json.dumps(
                        measure(args.only, quickstart(data, args.steps + 1, folder / "run", args.overrides), args.batch)
                    )
                )
                return
        except ValueError as error:
            raise SystemExit(f"benchmarks.hf_trainer: {error}") from error
        found: dict[str, list[Measured]] = {way: [] for way in WAYS}
        for _ in range(args.runs):
            for way in WAYS:
                found[way].append(measured_apart(way, args, data))
            assert_equal_losses({way: runs[-1]["loss"] for way, runs in found.items()})
    documents = (
        f"{found['ours'][0]['documents']:.0f} documents in {args.steps} steps, padded in batches of "
        f"{args.batch or 'as many as ours'}"
    )
    print(f"training against Trainer, fp32, {documents}, median of {args.runs}")
    arguments = shlex.join(sys.argv[1:] if argv is None else argv)
    print(f"  {machine()}\n  python -m benchmarks.hf_trainer {arguments}".rstrip())
    print("\n".join(f"  {line}" for line in table(found)))


if __name__ == "__main__":
    main()
