"""What counts as a loss spike, and what of it is known after a restart."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from liquid_train.checkpoint.folder import checkpoint_name
from liquid_train.checkpoint.progress import GuardState, Progress
from liquid_train.config.compose import load
from liquid_train.data.tasks import FIRST as TASKS
from liquid_train.distributed.hang_detection import collective_timeout, lost_peer
from liquid_train.distributed.parallelize import process_group
from liquid_train.training.settings import SpikeConfig
from liquid_train.training.spikes import check_skipped, go_back, is_spike, limit, shares_and_losses


def normal(n: int, mean: float = 2.0, deviation: float = 0.05) -> list[float]:
    return [float(x) for x in np.random.default_rng(0).normal(mean, deviation, n)]


def of(loss: float) -> dict[str, tuple[float, float]]:
    return {"text": (1.0, loss)}


def test_a_step_with_more_of_a_dear_task_is_none() -> None:
    """Texts cost three times an image, and every step has another share of them; an image that costs twice as much is
    one."""
    state, config, random = GuardState(), SpikeConfig(window=64), np.random.default_rng(1)

    def step(text: float, image: float) -> bool:
        share = float(random.choice([0.02, 0.05, 0.1, 0.6]))
        return is_spike({"text": (share, text), "t2i": (1 - share, image)}, state, config)

    assert not any(step(float(random.normal(6, 0.1)), float(random.normal(2, 0.05))) for _ in range(500))
    assert step(6.0, 4.0)
    assert not step(6.0, 2.0) and not is_spike({"vqa": (1.0, 50.0)}, state, config), "what was never seen is not dear"


def test_going_back_counts_once_and_leaves_out_the_data_since(tmp_path: Path) -> None:
    """A spike at the 12th batch of a run that has no checkpoint yet: back to the beginning, on without 12 batches."""
    progress = Progress(step=11, guard=GuardState(spikes=4, rewinds=1))
    with process_group():
        rewind = go_back(progress, 11, None, tmp_path)
    assert rewind.checkpoint is None
    assert (rewind.guard.spikes, rewind.guard.rewinds, rewind.guard.left_out) == (4, 2, 12)


def test_shares_and_losses_come_from_the_sums_of_a_step() -> None:
    """3 targets of text that weigh 1, 2 of t2i that weigh 3: shares 1/3 and 2/3."""
    sums = torch.zeros(4, len(TASKS))
    sums[:, TASKS.index("text")] = torch.tensor([6.0, 0.0, 3.0, 6.0])
    sums[:, TASKS.index("t2i")] = torch.tensor([8.0, 0.0, 2.0, 24.0])
    found = shares_and_losses(sums, TASKS)
    assert (
        found["text"] == pytest.approx((1 / 3, 2.0)) and found["t2i"] == pytest.approx((2 / 3, 4.0)) and len(found) == 2
    )


def test_the_limit_is_that_of_a_normal_distribution_and_spikes_hardly_move_it() -> None:
    config = SpikeConfig(threshold=6.0, window=4000)
    losses = normal(4000)
    assert limit(known(losses), config) == pytest.approx(6 * 0.05, abs=0.02)
    assert limit(known(losses[:3900] + [50.0] * 100), config) == pytest.approx(6 * 0.05, abs=0.03)
    assert limit(known([2.0] * 64), SpikeConfig(window=64)) == pytest.approx(2.0 * 0.06), (
        "a deviation of nothing counts 1% of the usual loss"
    )


def known(losses: list[float]) -> GuardState:
    return GuardState(excesses=[loss - 2.0 for loss in losses], usual=[2.0] * len(losses))


def test_none_is_a_spike_before_half_of_the_window_is_known() -> None:
    state, config = GuardState(), SpikeConfig(window=20)
    assert not any(is_spike(of(loss), state, config) for loss in [*normal(9), 1000.0])
    assert is_spike(of(1000.0), state, config) and state.spikes == 1


@pytest.mark.parametrize(("action", "found"), [("warn", 10), ("skip", 30)])
def test_a_new_level_is_learned_unless_spikes_are_acted_on(action: Literal["warn", "skip"], found: int) -> None:
    """Where steps are left out the level cannot be a new one of the model: train.max_skipped ends the run."""
    state, config = GuardState(), SpikeConfig(action=action, window=20)
    for loss in normal(20):
        is_spike(of(loss), state, config)
    for loss in normal(30, mean=4.0):
        is_spike(of(loss), state, config)
    assert state.spikes == found and len(state.excesses) == 20


def test_a_falling_loss_has_no_spikes() -> None:
    state, config = GuardState(), SpikeConfig()
    noise = normal(2000, mean=0.0, deviation=0.03)
    assert not any(is_spike(of(1.5 + 6 * math.exp(-step / 300) + noise[step]), state, config) for step in range(2000))


def test_a_checkpoint_of_an_older_version_knows_no_spikes(tmp_path: Path) -> None:
    folder = tmp_path / checkpoint_name(3)
    folder.mkdir()
    (folder / "trainer.json").write_text("{}")
    assert GuardState.of(folder) == GuardState()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.spike.action=stop", "train.spike.action=stop: one of warn, skip, rewind"),
        ("train.spike.window=1", "train.spike.window=1"),
        ("train.hang_timeout=0", "train.hang_timeout=0"),
        ("train.profile_steps=[3]", "train.profile_steps=\\[3\\]: give the first and the last step"),
        ("train.profile_steps=[4,3]", "train.profile_steps=\\[4, 3\\]"),
    ],
)
def test_wrong_settings_are_refused(override: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        load("train", ["experiment=quickstart", override])


def test_too_many_skipped_steps_end_a_run() -> None:
    config = load("train", ["experiment=quickstart", "train.max_skipped=3", "train.spike.action=skip"])
    check_skipped(config, 2)
    with pytest.raises(ValueError, match="train.max_skipped=3: .* train.spike.action=skip leaves out"):
        check_skipped(config, 3)


def test_a_failed_collective_is_told_in_one_line() -> None:
    """What torch 2.13 says of gloo's; other errors are not mistaken for one."""
    gloo = RuntimeError(
        "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Connection closed by peer [10.0.0.2]:5512. This "
        "is typically caused"
    )
    assert lost_peer(gloo) == "another rank is gone, or cannot be reached: Connection closed by peer [10.0.0.2]:5512"
    assert lost_peer(RuntimeError("a matrix of\nthe wrong shape")) is None
    import torch.distributed as dist

    nccl = dist.DistBackendError("NCCL error in: NCCLUtils.hpp:1, remote process exited,\nNCCL version 2.27")
    assert lost_peer(nccl) == (
        "another rank is gone, or cannot be reached: NCCL error in: NCCLUtils.hpp:1, remote process exited, NCCL "
        "version 2.27"
    )


def test_a_collective_outlives_the_watchdog() -> None:
    assert collective_timeout(None) is None
    for hang in (8.0, 1800.0):
        timeout = collective_timeout(hang)
        assert timeout is not None and timeout.total_seconds() > 4 * hang, (
            "the watchdog is patient up to four times its limit"
        )
