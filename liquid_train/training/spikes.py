"""Steps whose loss jumps, and what is done about them: counted, skipped, or undone by going back to a checkpoint.

A step's loss depends on its mixture of tasks: text has a higher loss than images, and the mixture varies from step to
step. So a step is compared with its usual loss: the median of each task's last losses, weighted by the tasks' shares of
this step. It is a spike if its excess over that is more than train.spike.threshold robust standard deviations above the
median of the last train.spike.window excesses. The robust standard deviation is the median absolute deviation (MAD)
times 1.4826, which for a normal distribution is its standard deviation (Iglewicz and Hoaglin 1993, How to Detect and
Handle Outliers); unlike the plain one it hardly changes while spikes are in the window. Six deviations over 128 steps
are OLMo-core's numbers for the same purpose. A deviation is at least 1% of the usual loss, and no step is a spike until
half of the window is filled.

Going back is what PaLM did (Chowdhery et al. 2022, arXiv 2204.02311, section 5.1): training continues from an earlier
checkpoint, without the batches from there to the end of the spike. After that, optimizer step n no longer has the data
of step n; `left_out` counts the difference.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist
from torch import Tensor

from liquid_train.checkpoint.folder import committed, step_of
from liquid_train.checkpoint.progress import GuardState, Progress
from liquid_train.config.schema import TrainJob
from liquid_train.data.stream_state import StreamState
from liquid_train.errors import UserError
from liquid_train.training.settings import SpikeConfig

NORMAL = 1.4826  # standard deviation / MAD of a normal distribution
LEAST = 0.01  # the smallest deviation, as a share of the usual loss


@dataclass(frozen=True)
class Rewind:
    """Where training continues after a spike."""

    checkpoint: Path | None  # None: the beginning of the run
    guard: GuardState
    streams: dict[int, StreamState]  # of this rank, after the data that is left out


def shares_and_losses(per_task: Tensor, names: Sequence[str]) -> dict[str, tuple[float, float]]:
    """per_task [4, tasks], the step's sums as in LossOutput, of the tasks `names` -> {task: (its share of the weights,
    its mean loss)}."""
    loss, _, count, weighted = per_task
    means = {task: float(loss[i] / count[i]) for i, task in enumerate(names) if count[i]}
    weights = {task: float(weighted[names.index(task)]) / mean for task, mean in means.items() if mean > 0}
    whole = sum(weights.values())
    return {task: (weight / whole, means[task]) for task, weight in weights.items() if whole > 0}


def limit(state: GuardState, config: SpikeConfig) -> float:
    """The excess above which a step is a spike; infinite until half of the window is filled."""
    if len(state.excesses) < max(2, config.window // 2):
        return math.inf
    median = statistics.median(state.excesses)
    deviation = NORMAL * statistics.median(abs(excess - median) for excess in state.excesses)
    return median + config.threshold * max(deviation, LEAST * statistics.median(state.usual))


def is_spike(parts: dict[str, tuple[float, float]], state: GuardState, config: SpikeConfig) -> bool:
    """Whether a step with these finite losses (from shares_and_losses) is a spike. Adds the step to `state`. The same
    on all ranks, as the losses are.

    The first losses of a task are taken as usual.
    """
    usual = sum(
        share * (statistics.median(state.by_task[task]) if task in state.by_task else loss)
        for task, (share, loss) in parts.items()
    )
    excess = sum(share * loss for share, loss in parts.values()) - usual
    found = excess > limit(state, config)
    state.spikes += found
    if not found or config.action == "warn":  # with warn, a level that has risen for good must not be a spike forever
        state.excesses = [*state.excesses, excess][-config.window :]
        state.usual = [*state.usual, usual][-config.window :]
        for task, (_, loss) in parts.items():
            state.by_task[task] = [*state.by_task.get(task, []), loss][-config.window :]
    return found


def go_back(progress: Progress, data_step: int, start: Path | None, run_dir: Path) -> Rewind:
    """How to continue after the spike at 0-based `data_step`; progress.streams must be past it. A collective.

    start: the checkpoint that training began from, which may be another run's.
    """
    own = committed(run_dir)
    chosen = [own[-1] if own else start]
    dist.broadcast_object_list(chosen)  # rank 0's choice: another rank may not see the newest one yet
    checkpoint = chosen[0]
    state = GuardState.of(checkpoint) if checkpoint else GuardState()
    state.spikes, state.rewinds = progress.guard.spikes, progress.guard.rewinds + 1
    state.left_out = data_step + 1 - (step_of(checkpoint) if checkpoint else 0)
    return Rewind(checkpoint, state, progress.streams)


def spike_report(config: TrainJob, progress: Progress, loss: float, saved_step: int) -> str:
    """A line about a spike at the step after progress.step, and what is done about it. saved_step: the newest
    checkpoint's. UserError where training has gone back as often as it may."""
    spike, guard, step = config.train.spike, progress.guard, progress.step
    done = {
        "warn": "training goes on",
        "skip": "no optimizer step",
        "rewind": f"back to the checkpoint of step {saved_step}, on without the data since",
    }
    found = f"step {step + 1}: the loss jumps to {loss:.3f} (spike {guard.spikes})"
    if spike.action == "rewind" and step != saved_step and guard.rewinds >= spike.rewinds:
        raise UserError(
            f"{found}, and train.spike.rewinds={spike.rewinds}: as many times training went back already; lower "
            f"optimizer.lr={config.optimizer.lr}, or look at the data of such a step: liquid run replay "
            f"{config.run.dir} --step N"
        )
    return f"{found}: {done[spike.action]} (train.spike.action={spike.action})"


def check_skipped(config: TrainJob, in_a_row: int) -> None:
    """UserError when too many steps in a row were left out."""
    if in_a_row >= config.train.max_skipped:
        raise UserError(
            f"train.max_skipped={config.train.max_skipped}: as many steps in a row had a loss or gradient that was "
            "not finite, or were spikes "
            f"that train.spike.action={config.train.spike.action} leaves out; lower optimizer.lr={config.optimizer.lr}"
        )
