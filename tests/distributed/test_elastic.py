"""Thirty-two steps, killed again and again and gone on with: on other numbers of ranks and loaders the data are the
same, on the same number everything is."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from liquid_train.checkpoint import folder as checkpoint
from tests.distributed.running import make_data, start_ranks, train, wait_for_step, without_timings

STEPS = 32
FLEET = [(2, 1), (3, 0), (4, 2), (1, 4)]  # ranks, loader processes of each


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("elastic"))


@pytest.fixture(scope="module")
def whole(root: Path) -> list[dict]:
    return train(root, "whole", *options(1, 0))


def options(ranks: int, workers: int) -> list[str]:
    fixed = (f"train.steps={STEPS}", "checkpoint.every=2", "train.batch_digest=true", "train.deterministic=true")
    return [*fixed, f"launch.nproc={ranks}", f"data.workers={workers}"]


def kill_and_go_on(root: Path, run: str, fleet: list[tuple[int, int]], seed: int) -> list[dict]:
    """Every member of `fleet` but the last trains until it is killed at a random step; the last one trains to the
    end."""
    dice = random.Random(seed)
    reached = 0
    for ranks, workers in fleet[:-1]:
        with start_ranks(root, run, *options(ranks, workers)) as started:
            wait_for_step(root / run, reached + dice.randint(6, 9), started)
            started.kill()
        reached = checkpoint.step_of(checkpoint.committed(root / run)[-1])
    assert 0 < reached < STEPS
    return train(root, run, *options(*fleet[-1]))


def test_other_ranks_and_loaders_see_the_same_batches(root: Path, whole: list[dict]) -> None:
    lines = kill_and_go_on(root, "elastic", FLEET, seed=0)
    assert [m["step"] for m in lines] == list(range(1, STEPS + 1))
    assert [m["batch_digest"] for m in lines] == [m["batch_digest"] for m in whole]
    assert len({m["batch_digest"] for m in lines}) == STEPS
    assert lines[-1]["documents"] == whole[-1]["documents"]
    assert max(abs(a["loss"] - b["loss"]) for a, b in zip(lines, whole, strict=True)) < 1e-4


def test_the_same_ranks_repeat_every_bit(root: Path) -> None:
    unbroken = train(root, "unbroken", *options(2, 1))
    # resumed twice: what the first resume restored is saved again
    lines = kill_and_go_on(root, "broken", [(2, 1)] * 3, seed=1)
    assert without_timings(lines) == without_timings(unbroken)
    weights = [(checkpoint.model_folder(root / r) / "model.safetensors").read_bytes() for r in ("unbroken", "broken")]
    assert weights[0] == weights[1]
