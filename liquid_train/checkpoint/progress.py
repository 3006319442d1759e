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
    """excesses, usual, by_task: of the last steps that were no spikes, or of all where nothing is done about spikes;
    by_task: each task's mean losses.
    spikes, rewinds: how many so far. left_out: steps' worth of data that were left out, so that optimizer step n trains
    on the data of step n + left_out."""

    excesses: list[float] = field(default_factory=list)
    usual: list[float] = field(default_factory=list)
    by_task: dict[str, list[float]] = field(default_factory=dict)
    spikes: int = 0
    rewinds: int = 0
    left_out: int = 0

    @classmethod
    def of(cls, checkpoint: Path) -> GuardState:
        """As a checkpoint holds it; checkpoints of older versions have none."""
        return cls(**read_json(checkpoint / TRAINER).get("guard", {}))


@dataclass
class Progress:
    """How far a run is. step: optimizer steps done; tokens, documents: trained on (also by source, without padding);
    streams: state of every canonical stream; shards: digest of each source's shard set, which the streams' states are
    positions in."""

    step: int = 0
    tokens: int = 0
    documents: int = 0
    skipped: int = 0  # steps left out because their loss or gradient was not finite
    streams: dict[int, StreamState] = field(default_factory=dict)
    shards: dict[str, str] = field(default_factory=dict)
    source_documents: dict[str, int] = field(default_factory=dict)
    source_tokens: dict[str, int] = field(default_factory=dict)
    guard: GuardState = field(default_factory=GuardState)  # what is known of loss spikes


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
