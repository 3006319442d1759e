"""What a checkpoint holds: weights as an HF folder, optimizer state through torch.distributed.checkpoint, and trainer.json.

trainer.json: step, tokens, documents, the state of every canonical data stream, and the config it was trained with. The
model has no dropout and every random choice of the data is keyed, so there is no generator's state to keep.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.optim import Optimizer

from liquid_train import checkpoint
from liquid_train.backbone import ModelCard, fill_from_folder, named_full_tensors
from liquid_train.data.loader import owner
from liquid_train.data.packing import StreamState
from liquid_train.files import sha256_of, write_synced
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


def save(run_dir: Path, root: LossModule, optimizer: Optimizer, progress: Progress, config: Any, card: ModelCard, vocabulary: Vocabulary,
         world: World, keep: int) -> None:  # fmt: skip
    """Write and commit a checkpoint; a collective of all ranks. Of progress.streams each gives the streams it owns."""
    partial = run_dir / "checkpoints" / f".{checkpoint.checkpoint_name(progress.step)}.partial"
    if world.main:
        checkpoint.begin(run_dir, progress.step)
    dist.barrier()
    dcp.save({"optimizer": get_optimizer_state_dict(root, optimizer)}, checkpoint_id=partial / "optimizer")
    tensors = {name: tensor.contiguous() for name, tensor in named_full_tensors(root.lm) if world.main}
    streams = _gather_streams(progress.streams, world)
    if world.main:
        write_model(partial / "model", root, tensors, card, vocabulary)
        state = {**asdict(progress), "streams": {str(k): streams[k] for k in sorted(streams)}, "world_size": world.size, "config": asdict(config)}
        write_synced(partial / TRAINER, json.dumps(state))
        checkpoint.commit(partial, progress.step, {"vq": card.vq_fingerprint, "tokenizer": sha256_of(partial / "model" / "tokenizer.json")})
        checkpoint.retain(run_dir, keep)
    dist.barrier()


def write_model(folder: Path, root: LossModule, tensors: dict[str, Any], card: ModelCard, vocabulary: Vocabulary) -> None:
    """An HF folder: safetensors, config, generation config, tokenizer, liquid.json."""
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
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
