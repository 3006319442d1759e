"""How far a run has come, as trainer.json of a checkpoint holds it. torch is not imported."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from liquid_train.checkpoint.folder import TRAINER
from liquid_train.data.stream_state import StreamState
from liquid_train.files import read_json


@dataclass
class GuardState:
    """What is known of loss spikes (training/spikes.py). The lists are of the last steps that were not spikes; with
    train.spike.action=warn, of the last steps."""

    excesses: list[float] = field(default_factory=list)  # loss above the usual one
    usual: list[float] = field(default_factory=list)  # loss that the step's mixture of tasks usually has
    by_task: dict[str, list[float]] = field(default_factory=dict)  # each task's mean losses
    spikes: int = 0  # so far
    rewinds: int = 0  # so far
    left_out: int = 0  # steps' worth of data left out: optimizer step n trains on the data of step n + left_out

    @classmethod
    def of(cls, checkpoint: Path) -> GuardState:
        """From a checkpoint; those of older versions have none."""
        return cls(**read_json(checkpoint / TRAINER).get("guard", {}))


@dataclass
class Progress:
    """How far a run has come."""

    step: int = 0  # optimizer steps done
    tokens: int = 0  # trained on, padding included
    documents: int = 0
    skipped: int = 0  # steps left out because their loss or gradient was not finite
    streams: dict[int, StreamState] = field(default_factory=dict)  # of every canonical stream
    shards: dict[str, str] = field(default_factory=dict)  # by source: digest of the shard set that the streams read
    source_documents: dict[str, int] = field(default_factory=dict)
    source_tokens: dict[str, int] = field(default_factory=dict)  # without padding
    guard: GuardState = field(default_factory=GuardState)


def read_progress(folder: Path) -> tuple[Progress, dict[str, Any]]:
    """(progress, config it was trained with) of a checkpoint."""
    state = read_json(folder / TRAINER)
    streams = {int(k): v for k, v in state["streams"].items()}
    # not in checkpoints of older versions
    by_source = {k: state.get(k, {}) for k in ("source_documents", "source_tokens")}
    progress = Progress(
        state["step"],
        state["tokens"],
        state["documents"],
        state["skipped"],
        streams,
        state.get("shards", {}),
        **by_source,
        guard=GuardState(**state.get("guard", {})),
    )
    return progress, state["config"]
