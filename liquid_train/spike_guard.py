"""Steps whose loss jumps: found by the last steps' median, then counted, left out, or undone by going back to a checkpoint.

A loss is a spike where it lies more than train.spike.threshold robust standard deviations above the median of the last
train.spike.window losses. Deviations are the median absolute deviation (MAD) times 1.4826, which is the standard deviation of a normal
distribution (Iglewicz and Hoaglin 1993, How to Detect and Handle Outliers): unlike mean and standard deviation, they hold still while
spikes are in the window. Six of them over 128 steps are OLMo-core's numbers for the same question. A deviation counts at least 1% of
the median, and the window is waited for until it is half full.

Going back is what PaLM did (Chowdhery et al. 2022, arXiv 2204.02311, section 5.1): on from an earlier checkpoint, without the batches
seen between it and the end of the spike. So optimizer step n no longer has the data of step n; `left_out` counts the difference.
"""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch.distributed as dist

from liquid_train.checkpoint import committed, step_of
from liquid_train.config import SpikeConfig
from liquid_train.train_state import TRAINER, Progress

if TYPE_CHECKING:
    from liquid_train.data.packing import StreamState

NORMAL = 1.4826  # standard deviation / MAD of a normal distribution
LEAST = 0.01  # of the median: the smallest deviation that counts


@dataclass
class GuardState:
    """losses: of the last steps that were no spikes, or of all where nothing is done about spikes. spikes, rewinds: how many so far.
    left_out: steps' worth of data that were left out, so that optimizer step n trains on the data of step n + left_out."""

    losses: list[float] = field(default_factory=list)
    spikes: int = 0
    rewinds: int = 0
    left_out: int = 0

    @classmethod
    def of(cls, checkpoint: Path) -> GuardState:
        """As a checkpoint holds it; checkpoints of older versions have none."""
        return cls(**json.loads((checkpoint / TRAINER).read_text()).get("guard", {}))


@dataclass
class GuardedProgress(Progress):
    """Progress and what the guard needs to go on exactly: trainer.json holds both."""

    guard: GuardState = field(default_factory=GuardState)


@dataclass(frozen=True)
class Rewind:
    """Where training goes on after a spike. checkpoint: None for the run's beginning. streams: where this rank's data goes on."""

    checkpoint: Path | None
    guard: GuardState
    streams: dict[int, StreamState]


def limit(losses: list[float], config: SpikeConfig) -> float:
    """The loss above which a step is a spike; infinite until half of the window is known."""
    if len(losses) < max(2, config.window // 2):
        return math.inf
    median = statistics.median(losses)
    deviation = NORMAL * statistics.median(abs(loss - median) for loss in losses)
    return median + config.threshold * max(deviation, LEAST * abs(median))


def is_spike(loss: float, state: GuardState, config: SpikeConfig) -> bool:
    """Whether a step with this finite loss is one; notes the loss. The same on all ranks, as the loss is."""
    found = loss > limit(state.losses, config)
    state.spikes += found
    if not found or config.action == "warn":  # otherwise a level that has risen for good would be a spike for good
        state.losses = [*state.losses, loss][-config.window :]
    return found


def go_back(progress: GuardedProgress, data_step: int, start: Path | None, run_dir: Path) -> Rewind:
    """How to go on behind the spike at 0-based `data_step`; progress.streams must be behind it already. A collective.

    start: the checkpoint that training began from, which may be another run's.
    """
    own = committed(run_dir)
    chosen = [own[-1] if own else start]
    dist.broadcast_object_list(chosen)  # another rank may not see the newest one yet
    checkpoint = chosen[0]
    state = GuardState.of(checkpoint) if checkpoint else GuardState()
    state.spikes, state.rewinds = progress.guard.spikes, progress.guard.rewinds + 1
    state.left_out = data_step + 1 - (step_of(checkpoint) if checkpoint else 0)
    return Rewind(checkpoint, state, progress.streams)
