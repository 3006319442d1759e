"""`liquid run replay RUN --step N`: the global batch of one step again, document by document, with the loss and
gradient of each.

The batch is rebuilt exactly: from the newest checkpoint before that step, or from the first step. The weights are those
of that checkpoint too (the step's own, where the checkpoint lies just before it), or of the oldest one where none is
earlier.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.progress import track

from liquid_train.checkpoint.folder import committed, step_of
from liquid_train.checkpoint.progress import read_progress
from liquid_train.config.compose import read_config
from liquid_train.config.schema import TrainJob
from liquid_train.data.batch import MicroBatch, RankBatch, batch_digest, places_of
from liquid_train.data.document_plan import DocumentPlan
from liquid_train.data.loader import BatchLoader, open_sources
from liquid_train.data.packing import Sequence
from liquid_train.data.sequence_pieces import IGNORED
from liquid_train.data.tasks import task_names
from liquid_train.debug.token_text import ReadableDocument, documents
from liquid_train.errors import UserError
from liquid_train.files import check_folder, write_synced, writing
from liquid_train.generate.images import contact_sheet, decode, save_png
from liquid_train.image_tokenizer.opening import open_image_tokenizer
from liquid_train.logs import console
from liquid_train.model import backbone
from liquid_train.model.loss import LossModule
from liquid_train.report.run_reader import json_lines
from liquid_train.vocabulary import Vocabulary

COLUMNS = 8  # of the sheet of images


@dataclass(frozen=True)
class ReplayedDocument:
    """sequence: its place in the global batch. loss: nats a target, unweighted. grad_norm: of that loss, over all
    weights."""

    sequence: int
    name: str
    task: str
    tokens: int
    targets: int
    loss: float
    grad_norm: float
    text: str


def replay(run_dir: str | Path, step: int, output: str | Path | None = None) -> list[ReplayedDocument]:
    """Print the documents of a step, those of the largest gradient first; with `output`, also documents.jsonl and
    images.png there.

    Raises UserError when the folder is no run, the step was not trained, or no checkpoint is left.
    """
    run_dir = Path(run_dir)
    config = read_config(run_dir)
    kept = committed(run_dir)
    if not kept:
        raise UserError(f"{run_dir}: no complete checkpoint there; replay needs one for its tokenizer and weights")
    if output:
        check_folder(Path(output), f"--output {output}")
    newest = step_of(kept[-1])
    if not 1 <= step <= newest:
        raise UserError(f"--step {step}: the run has the steps 1 to {newest}")
    earlier = [c for c in kept if step_of(c) < step]
    weights = earlier[-1] if earlier else kept[0]
    vocabulary = backbone.read_vocabulary(weights / "model")
    batch = rebuild(config, vocabulary, step + left_out(run_dir, step), earlier[-1] if earlier else None)
    check_digest(run_dir, step, batch)
    print(
        f"weights of step {step_of(weights)}"
        + ("" if step_of(weights) == step - 1 else f", the nearest that is kept; step {step} had those of {step - 1}")
    )
    root = open_with_loss(config, weights / "model", vocabulary)
    found, images = [], []
    for number in track(
        sorted(batch.sequences), description="documents", console=console(), disable=len(batch.sequences) < 2
    ):
        for document, part in parts(batch.sequences[number], vocabulary, task_names(config.data)):
            loss, norm = loss_and_gradient(root, part)
            found.append(
                ReplayedDocument(
                    number, document.name, document.task, document.tokens, document.targets, loss, norm, document.text()
                )
            )
            images.append(document.codes())
    found.sort(key=lambda d: -d.grad_norm)
    print_table(found)
    if output:
        with writing(Path(output), f"--output {output}", "make room, or choose another folder"):
            write_output(Path(output), found, [p for p in images if p is not None], config)
    return found


def left_out(run_dir: Path, step: int) -> int:
    """How many steps' worth of data was left out before `step` (train.spike.action=rewind), by the last line that was
    logged up to it."""
    found = [
        line["left_out"]
        for line in json_lines(run_dir / "metrics.jsonl")
        if line and "left_out" in line and line["step"] <= step
    ]
    return int(found[-1]) if found else 0


def rebuild(config: TrainJob, vocabulary: Vocabulary, step: int, checkpoint: Path | None) -> RankBatch:
    """The whole global batch of 1-based data step `step`, from a checkpoint before it or from the first step."""
    vq = open_image_tokenizer(config.vq, parts=())
    sets = open_sources(config.data, vq.fingerprint, vq.codebook_size)
    progress = read_progress(checkpoint)[0] if checkpoint else None
    first, states = (progress.step + progress.guard.left_out, progress.streams) if progress else (0, {})
    data = replace(config.data, workers=0)
    loader = BatchLoader(
        data, config.seed, sets, vocabulary, rank=0, world=1, first_step=first, steps=step, states=states
    )
    batch = None
    steps = step - first
    for batch in track(loader, "rebuilding", steps, console=console(), disable=steps < 50):  # noqa: B007
        pass
    assert batch is not None and batch.step == step - 1
    return batch


def check_digest(run_dir: Path, step: int, batch: RankBatch) -> None:
    """Compare with the digest in metrics.jsonl, where train.batch_digest wrote one. Raises UserError when they
    differ."""
    logged = next(
        (
            line.get("batch_digest")
            for line in json_lines(run_dir / "metrics.jsonl")
            if line and line.get("step") == step and "loss" in line
        ),
        None,
    )
    if logged is None:
        print(f"step {step} rebuilt (train.batch_digest=true would have logged a digest to compare it with)")
    elif logged == batch_digest(batch.digests()):
        print(f"step {step} rebuilt; its digest is the one that was logged")
    else:
        raise UserError(
            f"step {step}: the rebuilt batch is not the one that was trained on (another digest): the shards have "
            "changed since, or the order of the data, with the version of liquid_train"
        )


def open_with_loss(config: TrainJob, folder: Path, vocabulary: Vocabulary) -> LossModule:
    """The trained weights under the training loss, on this machine's first device, fp32."""
    settings = replace(config.backbone, path=str(folder))
    hf_config = backbone.model_config(settings, vocabulary.text_size)
    lm = backbone.build(hf_config, vocabulary)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backbone.materialize(lm, device)
    backbone.fill_from_folder(lm, folder)
    return LossModule.of(lm, vocabulary, replace(config.loss, z_loss=0.0))


def parts(
    sequence: Sequence, vocabulary: Vocabulary, names: tuple[str, ...]
) -> Iterator[tuple[ReadableDocument, MicroBatch]]:
    """Every document of a sequence, in words and as a batch of its own. names: of the run's tasks."""
    for document in documents(sequence, vocabulary, names):
        part = slice(document.first, document.first + document.tokens)
        targets = torch.full((1, document.tokens), IGNORED, dtype=torch.int64)
        targets[0, :-1] = torch.from_numpy(sequence.labels[part][1:])
        tasks = torch.full((1, document.tokens), -1, dtype=torch.int8)
        tasks[0, :-1] = torch.from_numpy(np.where(sequence.labels[part] == IGNORED, -1, sequence.tasks[part])[1:])
        ids, positions = (torch.from_numpy(array[part])[None] for array in (sequence.ids, sequence.positions))
        plan = DocumentPlan.from_lengths([document.tokens])
        weights = (targets != IGNORED).float()
        yield document, MicroBatch(ids, targets, positions, tasks, weights, places_of(targets), plan, names)


def loss_and_gradient(root: LossModule, batch: MicroBatch) -> tuple[float, float]:
    """(mean loss over the targets, norm of its gradient); zeros for a document without a target."""
    count = float(batch.weights.sum())
    if not count:
        return 0.0, 0.0
    root.zero_grad(set_to_none=True)
    output = root(batch.to(next(root.parameters()).device))
    (output.total / count).backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in root.parameters() if p.grad is not None])
    return float(output.total.detach()) / count, float(norm)


def print_table(found: list[ReplayedDocument]) -> None:
    """One line a document, so that grep and sort work on it."""
    print(
        f"{'gradient':>8} {'loss':>7} {'tokens':>6} {'targets':>7} {'sequence':>8}  document; text, with what is "
        "learned between » and «"
    )
    for d in found:
        text = d.text if len(d.text) <= 160 else d.text[:100] + " ... " + d.text[-50:]
        print(f"{d.grad_norm:8.3f} {d.loss:7.3f} {d.tokens:6} {d.targets:7} {d.sequence:8}  {d.name}; {text!r}")


def write_output(folder: Path, found: list[ReplayedDocument], grids: list[np.ndarray], config: TrainJob) -> None:
    """documents.jsonl, and images.png with the images of one grid shape in the batch's order."""
    folder.mkdir(parents=True, exist_ok=True)
    write_synced(folder / "documents.jsonl", "".join(json.dumps(asdict(d), ensure_ascii=False) + "\n" for d in found))
    if not grids:
        return
    vq = open_image_tokenizer(config.vq, parts=("decoder",))
    same = [grid for grid in grids if grid.shape == grids[0].shape]
    save_png(folder / "images.png", contact_sheet(list(decode(vq, np.stack(same))), COLUMNS))
    print(f"{folder}: documents.jsonl, images.png ({len(same)} images)")
