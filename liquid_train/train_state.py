"""What a checkpoint holds: weights as an HF folder, optimizer state through torch.distributed.checkpoint, and trainer.json.

trainer.json: step, tokens, documents, the state of every canonical data stream, and the config it was trained with. The
model has no dropout and every random choice of the data is keyed, so there is no generator's state to keep.

Any rank may find the disk full. So a save is cut into parts, each followed by an agreement of all ranks: none waits for another
that has given up.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.optim import Optimizer

from liquid_train import checkpoint
from liquid_train.backbone import ModelCard, fill_from_folder, named_full_tensors
from liquid_train.config import TrainJob
from liquid_train.data.loader import owner
from liquid_train.data.packing import StreamState
from liquid_train.files import sha256_of, write_synced
from liquid_train.hf_folder import Plan
from liquid_train.loss import LossModule
from liquid_train.parallel import World
from liquid_train.vocabulary import Vocabulary

TRAINER = "trainer.json"


@dataclass
class Progress:
    """How far a run is. step: optimizer steps done; tokens, documents: trained on (also by source, without padding);
    streams: state of every canonical stream; shards: digest of each source's shard set, which the streams' states are positions in."""

    step: int = 0
    tokens: int = 0
    documents: int = 0
    skipped: int = 0  # steps left out because their loss or gradient was not finite
    streams: dict[int, StreamState] = field(default_factory=dict)
    shards: dict[str, str] = field(default_factory=dict)
    source_documents: dict[str, int] = field(default_factory=dict)
    source_tokens: dict[str, int] = field(default_factory=dict)


class SaveFailed(ValueError):
    """A checkpoint could not be written: why, in one line, the same on all ranks. Nothing is left of it."""


def why_not_written(error: BaseException) -> str | None:
    """Why a file could not be written, or None for another kind of error. Libraries hide the OSError: tokenizers raises its text,
    torch's zip writer complains of its own position."""
    if "inline_container.cc" in str(error):
        return "torch could not write its file"
    return str(error) if isinstance(error, OSError) or "(os error " in str(error) else None


@contextlib.contextmanager
def agreed(world: World) -> Iterator[None]:
    """Work on files that may fail on any rank: where it does, all of them raise SaveFailed. A collective; the body must not be one."""
    failure = None
    try:
        yield
    except Exception as error:
        if not (why := why_not_written(error)):
            raise
        failure = f"rank {world.rank}: {why}"
    failures: list[str | None] = [None] * world.size
    dist.all_gather_object(failures, failure)
    if found := [f for f in failures if f]:
        raise SaveFailed("; ".join(found))


def save(run_dir: Path, root: LossModule, optimizer: Optimizer, progress: Progress, config: TrainJob, card: ModelCard, vocabulary: Vocabulary,
         world: World) -> None:  # fmt: skip
    """Write and commit a checkpoint; a collective of all ranks. Of progress.streams each gives the streams it owns.

    Raises SaveFailed on all ranks where one of them could not write; older checkpoints are as they were.
    """
    step = progress.step
    partial = checkpoint.partial_folder(run_dir, step)
    try:
        with agreed(world):
            if world.main:
                checkpoint.begin(run_dir, step)
        save_optimizer(partial / "optimizer", root, optimizer)
        save_weights(partial / "model", root, world, config.checkpoint.shard_gib)
        streams = _gather_streams(progress.streams, world)
        with agreed(world):
            if world.main:
                write_rest_of_model(partial / "model", root, card, vocabulary)
                state = {**asdict(progress), "streams": {str(k): streams[k] for k in sorted(streams)}, "world_size": world.size, "config": asdict(config)}
                write_synced(partial / TRAINER, json.dumps(state))
        own: dict[str, dict[str, Any]] = {}
        with agreed(world):
            own = checkpoint.described(partial, world.rank, world.size)
        parts: list[dict[str, dict[str, Any]]] = [{}] * world.size
        dist.all_gather_object(parts, own)
        with agreed(world):
            if world.main:
                fingerprints = {"vq": card.vq_fingerprint, "tokenizer": sha256_of(partial / "model" / "tokenizer.json")}
                checkpoint.commit(partial, step, fingerprints, {name: entry for part in parts for name, entry in part.items()})
                checkpoint.retain(run_dir, config.checkpoint.keep)
    except SaveFailed as error:
        left = [checkpoint.abandon(run_dir, step) if world.main else ""]
        dist.broadcast_object_list(left)
        raise SaveFailed(f"the checkpoint of step {step} was not written: {error}; {left[0]}") from error


def save_optimizer(folder: Path, root: LossModule, optimizer: Optimizer) -> None:
    """Every rank writes its part of the optimizer state; a collective. SaveFailed on all ranks where one could not."""
    try:
        dcp.save({"optimizer": get_optimizer_state_dict(root, optimizer)}, checkpoint_id=folder)
    except CheckpointException as error:  # torch has gathered what every rank raised
        found = [f"rank {rank}: {why}" for rank, (failure, _) in error.failures.items() if (why := why_not_written(failure))]
        if len(found) < len(error.failures):
            raise
        raise SaveFailed(f"{folder}: {'; '.join(found)}") from error


def save_weights(folder: Path, root: LossModule, world: World, shard_gib: float) -> None:
    """The model's weights as safetensors, file by file: a collective of as many calls on all ranks.

    File i is written by rank i % world.size, which alone keeps its tensors: no rank holds more than one file and one tensor.
    """
    plan = Plan.of(root.lm.named_parameters(), shard_gib)
    with agreed(world):
        folder.mkdir(parents=True, exist_ok=True)
    tensors = named_full_tensors(root.lm)
    held: dict[str, Tensor] = {}
    for number, names in enumerate(plan.names):
        for name, tensor in islice(tensors, len(names)):
            if number % world.size == world.rank:
                held[name] = tensor
        if (number + 1) % world.size == 0 or number + 1 == len(plan.names):
            with agreed(world):
                if held:
                    plan.write_file(folder, number - number % world.size + world.rank, held)
            held = {}
    with agreed(world):
        if world.main:
            plan.write_index(folder)


def write_rest_of_model(folder: Path, root: LossModule, card: ModelCard, vocabulary: Vocabulary) -> None:
    """What an HF folder has beside its weights: config, generation config, tokenizer, liquid.json."""
    hf_config = root.lm.config.to_dict() | {"architectures": [type(root.lm).__name__], "dtype": "float32"}
    hf_config.pop("_attn_implementation", None)
    (folder / "config.json").write_text(json.dumps(hf_config, indent=2))
    root.lm.generation_config.save_pretrained(folder)
    vocabulary.tokenizer.save_pretrained(folder)
    card.write(folder)


def _gather_streams(states: dict[int, StreamState], world: World) -> dict[int, StreamState]:
    """Every stream's state from the rank that it belongs to: a resumed rank also holds the others', as they were then."""
    parts: list[dict[int, StreamState] | None] = [None] * world.size
    dist.all_gather_object(parts, {s: state for s, state in states.items() if owner(s, world.data_size) == world.data_rank})
    return {k: v for part in parts if part for k, v in part.items()}


def read_progress(folder: Path) -> tuple[Progress, dict[str, Any]]:
    """(progress, config it was trained with) of a checkpoint."""
    state = json.loads((folder / TRAINER).read_text())
    streams = {int(k): v for k, v in state["streams"].items()}
    by_source = {k: state.get(k, {}) for k in ("source_documents", "source_tokens")}  # not in checkpoints of older versions
    progress = Progress(state["step"], state["tokens"], state["documents"], state["skipped"], streams, state.get("shards", {}), **by_source)
    return progress, state["config"]


def load(folder: Path, root: LossModule, optimizer: Optimizer) -> None:
    """Fill weights and optimizer from a checkpoint, on any number of ranks; a collective."""
    fill_from_folder(root.lm, folder / "model")
    state = {"optimizer": get_optimizer_state_dict(root, optimizer)}
    dcp.load(state, checkpoint_id=folder / "optimizer")
    set_optimizer_state_dict(root, optimizer, state["optimizer"])
