"""What a checkpoint holds: weights as an HF folder, optimizer state through torch.distributed.checkpoint, and
trainer.json.

trainer.json: the progress (progress.py) with the state of every canonical data stream, and the config. The model has no
dropout, and every random choice in the data is keyed, so there is no random generator's state to keep.

Any rank may find the disk full. So a save is done in parts, and after each all ranks agree whether it succeeded: no
rank waits for one that has given up.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save
from torch.optim import Optimizer

from liquid_train.checkpoint import folder as checkpoint
from liquid_train.checkpoint.carried_vq import carry_vq
from liquid_train.checkpoint.folder import TRAINER
from liquid_train.checkpoint.progress import Progress
from liquid_train.checkpoint.safetensors_shards import ShardPlan
from liquid_train.checkpoint.settings import CheckpointConfig
from liquid_train.config.schema import TrainJob
from liquid_train.data.batch import owner
from liquid_train.data.stream_state import ORDER_VERSION, StreamState
from liquid_train.distributed.parallelize import World
from liquid_train.errors import UserError
from liquid_train.files import sha256_of, write_synced
from liquid_train.model.backbone import Loaded, ModelCard, fill_from_folder, named_full_tensors, stored_shapes
from liquid_train.model.loss import LossModule
from liquid_train.vocabulary import Vocabulary


class SaveFailed(UserError):
    """A checkpoint could not be written. One line with the reason, the same on all ranks; nothing of it is left."""


def why_not_written(error: BaseException) -> str | None:
    """Why a file could not be written, or None for any other error. Libraries hide the OSError: tokenizers raises its
    text only, torch's zip writer complains about its own position."""
    if "inline_container.cc" in str(error):
        return "torch could not write its file"
    return str(error) if isinstance(error, OSError) or "(os error " in str(error) else None


@contextlib.contextmanager
def agreed(group: dist.ProcessGroup) -> Iterator[None]:
    """Runs work on files that may fail on any rank: where it does, all ranks raise SaveFailed. A collective, whose body
    must contain none."""
    failure, rank = None, dist.get_rank(group)
    try:
        yield
    except Exception as error:
        if not (why := why_not_written(error)):
            raise
        failure = f"rank {rank}: {why}"
    failures: list[str | None] = [None] * dist.get_world_size(group)
    dist.all_gather_object(failures, failure, group=group)
    if found := [f for f in failures if f]:
        raise SaveFailed("; ".join(found))


@dataclass
class Snapshot:
    """What a checkpoint will hold, this rank's part of it."""

    step: int
    optimizer: dict[str, Any]
    plan: ShardPlan
    # round by round, the safetensors file that this rank writes: its number in `plan`, its tensors; {}: no file
    files: Iterable[tuple[int, dict[str, Tensor]]]
    trainer: str  # the text of trainer.json
    rest: Callable[[Path], None]  # writes what model/ holds besides the weights
    vq_fingerprint: str


def snapshot(
    root: LossModule,
    optimizer: Optimizer,
    progress: Progress,
    config: TrainJob,
    card: ModelCard,
    vocabulary: Vocabulary,
    world: World,
    *,
    copied: bool,
) -> Snapshot:
    """The run's state at this step; a collective. Of progress.streams each rank contributes the streams it owns.

    copied: this rank's parts of the optimizer state and of the weights are copied to CPU memory, so that training can
    continue while they are written. Otherwise the snapshot must be written before the next step, and holds one file at
    a time.
    """
    state: dict[str, Any] = {"optimizer": get_optimizer_state_dict(root, optimizer)}
    plan = ShardPlan.of(stored_shapes(root.lm), config.checkpoint.shard_gib)
    files: Iterable[tuple[int, dict[str, Tensor]]] = own_files(plan, root, world, copied=copied)
    if copied:
        stager = DefaultStager(
            StagingOptions(
                use_pinned_memory=False, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=False
            )
        )
        state = cast(dict[str, Any], stager.stage(state))
        stager.close()
        files = list(files)
    streams = _gather_streams(progress.streams, world)
    trainer = {
        **asdict(progress),
        "streams": {str(k): streams[k] for k in sorted(streams)},
        "order_version": ORDER_VERSION,
        "world_size": world.size,
        "config": asdict(config),
    }
    rest = functools.partial(write_rest_of_model, root=root, card=card, vocabulary=vocabulary)
    return Snapshot(progress.step, state, plan, files, json.dumps(trainer), rest, card.vq_fingerprint)


def writers(ranks: int, per_machine: int) -> list[int]:
    """All ranks in the order in which they get files to write: machine after machine in turn, so that a few files are
    written by as many machines."""
    return sorted(range(ranks), key=lambda rank: (rank % per_machine, rank))


def own_files(
    plan: ShardPlan, root: LossModule, world: World, *, copied: bool
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """The model's full weights on the CPU: number and {name: tensor} of one safetensors file after another; a
    collective of all ranks.

    The ranks take turns, a round yields one file a rank or {} where there is none, so that all ranks have the same
    number of rounds. A rank holds at most the file that it yields in memory of the CPU, and gathers one tensor more at
    a time on its device. copied: also what is on the CPU: it may be the parameter itself, where one rank has all of it.
    """
    turn = writers(world.size, int(os.environ.get("LOCAL_WORLD_SIZE", world.size))).index(world.rank)
    tensors = named_full_tensors(root.lm)
    number, held = turn, dict[str, Tensor]()
    for current, names in enumerate(plan.names):
        for name, tensor in islice(tensors, len(names)):
            if current == number:
                held[name] = tensor.to("cpu", copy=copied)
        if (current + 1) % world.size == 0 or current + 1 == len(plan.names):
            yield number, held
            number, held = number + world.size, {}


def write_checkpoint(state: Snapshot, run_dir: Path, settings: CheckpointConfig, group: dist.ProcessGroup) -> None:
    """Write and commit a checkpoint; a collective of all ranks, through `group`.

    Raises SaveFailed on all ranks where one of them could not write; older checkpoints stay as they are.
    """
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    main, step = rank == 0, state.step
    partial = checkpoint.partial_folder(run_dir, step)
    try:
        with agreed(group):
            if main:
                checkpoint.begin(run_dir, step)
        write_optimizer(partial / "optimizer", state.optimizer, group)
        write_model(partial / "model", state, group)
        own: dict[str, dict[str, Any]] = {}
        with agreed(group):
            if main:
                write_synced(partial / TRAINER, state.trainer)
        with agreed(group):
            own = checkpoint.file_records(partial, rank, size)
        parts: list[dict[str, dict[str, Any]]] = [{}] * size
        dist.all_gather_object(parts, own, group=group)
        with agreed(group):
            if main:
                fingerprints = {
                    "vq": state.vq_fingerprint,
                    "tokenizer": sha256_of(partial / "model" / "tokenizer.json"),
                }
                checkpoint.commit(
                    partial, step, fingerprints, {name: entry for part in parts for name, entry in part.items()}
                )
                checkpoint.retain(run_dir, settings.keep, settings.keep_every)
    except SaveFailed as error:
        left = [checkpoint.abandon(run_dir, step) if main else ""]
        dist.broadcast_object_list(left, group=group)
        raise SaveFailed(f"the checkpoint of step {step} was not written: {error}; {left[0]}") from error


def write_optimizer(folder: Path, state: dict[str, Any], group: dist.ProcessGroup) -> None:
    """Every rank writes its part of the optimizer state; a collective. Raises SaveFailed on all ranks where one of them
    could not."""
    try:
        dcp_save(state, checkpoint_id=folder, process_group=group)
    except CheckpointException as error:  # torch has gathered what every rank raised
        found = [
            f"rank {rank}: {why}" for rank, (failure, _) in error.failures.items() if (why := why_not_written(failure))
        ]
        if len(found) < len(error.failures):
            raise
        raise SaveFailed(f"{folder}: {'; '.join(found)}") from error


def write_model(folder: Path, state: Snapshot, group: dist.ProcessGroup) -> None:
    """Write model/: every rank its weight files, rank 0 also all the rest; a collective."""
    with agreed(group):
        folder.mkdir(parents=True, exist_ok=True)
    for number, held in state.files:
        with agreed(group):
            if held:
                state.plan.write_file(folder, number, held)
    with agreed(group):
        if dist.get_rank(group) == 0:
            state.plan.write_index(folder)
            state.rest(folder)


def write_rest_of_model(folder: Path, root: LossModule, card: ModelCard, vocabulary: Vocabulary) -> None:
    """What an HF folder holds besides the weights: config, generation config, tokenizer, liquid.json, and the image
    tokenizer."""
    hf_config = root.lm.config.to_dict() | {"architectures": [type(root.lm).__name__], "dtype": "float32"}
    hf_config.pop("_attn_implementation", None)
    (folder / "config.json").write_text(json.dumps(hf_config, indent=2))
    root.lm.generation_config.save_pretrained(folder)
    vocabulary.tokenizer.save_pretrained(folder)
    carry_vq(card, folder).write(folder)


def _gather_streams(states: dict[int, StreamState], world: World) -> dict[int, StreamState]:
    """Every stream's state, from the rank that owns the stream. (A resumed rank also holds the states of other ranks'
    streams, as they were at the resume.)"""
    parts: list[dict[int, StreamState] | None] = [None] * world.size
    dist.all_gather_object(
        parts, {s: state for s, state in states.items() if owner(s, world.data_size) == world.data_rank}
    )
    return {k: v for part in parts if part for k, v in part.items()}


def load_checkpoint(folder: Path, root: LossModule, optimizer: Optimizer) -> Loaded:
    """Fill weights and optimizer from a checkpoint, on any number of ranks; a collective."""
    loaded = fill_from_folder(root.lm, folder / "model")
    state = {"optimizer": get_optimizer_state_dict(root, optimizer)}
    dcp_load(state, checkpoint_id=folder / "optimizer")
    set_optimizer_state_dict(root, optimizer, state["optimizer"])
    return loaded
