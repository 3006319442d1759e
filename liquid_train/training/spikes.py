"""Steps whose loss jumps: found by the last steps' median, then counted, left out, or undone by going back to a
checkpoint.

A step's loss depends on what it is made of: a text costs more than an image, and steps have more or less of either. So
it is compared with what its tasks usually cost: the median of each task's last losses, in the shares that the tasks
have of this step. A step is a spike where its excess over that lies more than train.spike.threshold robust standard
deviations above the median of the last train.spike.window excesses. Deviations are the median absolute deviation (MAD)
times 1.4826, which is the standard deviation of a normal distribution (Iglewicz and Hoaglin 1993, How to Detect and
Handle Outliers): unlike mean and standard deviation, they hold still while spikes are in the window. Six of them over
128 steps are OLMo-core's numbers for the same question. A deviation counts at least 1% of the usual loss, and the
window is waited for until it is half full.

Going back is what PaLM did (Chowdhery et al. 2022, arXiv 2204.02311, section 5.1): on from an earlier checkpoint,
without the batches seen between it and the end of the spike. So optimizer step n no longer has the data of step n;
`left_out` counts the difference.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch.distributed as dist
from torch import Tensor

from liquid_train.checkpoint.folder import TRAINER, committed, step_of
from liquid_train.training.settings import SpikeConfig

if TYPE_CHECKING:
    from liquid_train.checkpoint.state import Progress
    from liquid_train.data.stream_state import StreamState

NORMAL = 1.4826  # standard deviation / MAD of a normal distribution
LEAST = 0.01  # of the usual loss: the smallest deviation that counts


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
        return cls(**json.loads((checkpoint / TRAINER).read_text()).get("guard", {}))


@dataclass(frozen=True)
class Rewind:
    """Where training goes on after a spike. checkpoint: None for the run's beginning. streams: where this rank's data
    goes on."""

    checkpoint: Path | None
    guard: GuardState
    streams: dict[int, StreamState]


def parts_of(per_task: Tensor, names: Sequence[str]) -> dict[str, tuple[float, float]]:
    """per_task [4, tasks], the step's sums as LossOutput has them; names: of the tasks -> {task: (its share of the
    weights, its mean loss)}."""
    loss, _, count, weighted = per_task
    means = {task: float(loss[i] / count[i]) for i, task in enumerate(names) if count[i]}
    weights = {task: float(weighted[names.index(task)]) / mean for task, mean in means.items() if mean > 0}
    whole = sum(weights.values())
    return {task: (weight / whole, means[task]) for task, weight in weights.items() if whole > 0}


def limit(state: GuardState, config: SpikeConfig) -> float:
    """The excess above which a step is a spike; infinite until half of the window is known."""
    if len(state.excesses) < max(2, config.window // 2):
        return math.inf
    median = statistics.median(state.excesses)
    deviation = NORMAL * statistics.median(abs(excess - median) for excess in state.excesses)
    return median + config.threshold * max(deviation, LEAST * statistics.median(state.usual))


def is_spike(parts: dict[str, tuple[float, float]], state: GuardState, config: SpikeConfig) -> bool:
    """Whether a step with these finite losses (parts_of) is one; notes them. The same on all ranks, as the losses are.

    A task that was not seen before counts as usual, whatever it costs.
    """
    usual = sum(
        share * (statistics.median(state.by_task[task]) if task in state.by_task else loss)
        for task, (share, loss) in parts.items()
    )
    excess = sum(share * loss for share, loss in parts.values()) - usual
    found = excess > limit(state, config)
    state.spikes += found
    if not found or config.action == "warn":  # otherwise a level that has risen for good would be a spike for good
        state.excesses = [*state.excesses, excess][-config.window :]
        state.usual = [*state.usual, usual][-config.window :]
        for task, (_, loss) in parts.items():
            state.by_task[task] = [*state.by_task.get(task, []), loss][-config.window :]
    return found


def go_back(progress: Progress, data_step: int, start: Path | None, run_dir: Path) -> Rewind:
    """How to go on after the spike at 0-based `data_step`; progress.streams must be after it already. A collective.

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
