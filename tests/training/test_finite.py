"""Weights that are not finite are never saved, whichever way a run ends, and the good checkpoint stays."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from liquid_train.checkpoint.folder import committed
from liquid_train.cli import main
from liquid_train.distributed.parallelize import process_group
from liquid_train.training.finite import all_finite
from tests.shard_sets import mixture_overrides

BREAKS_AT = 3  # optimizer step
FACTOR = {"not finite": math.inf, "finite, but too large to compute with": 1e30}


class Breaking(torch.optim.SGD):
    """Of a user's own: its third step ruins the weights. stopping: the step that sends SIGTERM."""

    def __init__(self, params: Any, lr: float, factor: str = "not finite", stopping: int = 0) -> None:
        super().__init__(params, lr=lr, momentum=0.9)  # with a state: torch steps one without at every save
        self.factor, self.stopping, self.steps = FACTOR[factor], stopping, 0

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        super().step()
        self.steps += 1
        if self.steps == self.stopping:
            os.kill(os.getpid(), signal.SIGTERM)
        if self.steps == BREAKS_AT:
            for parameter in (p for group in self.param_groups for p in group["params"]):
                parameter.mul_(self.factor)


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    mixture = mixture_overrides(tmp_path_factory.mktemp("finite"))
    kept = [o for o in mixture if not o.startswith("run.dir")]
    own = f"optimizer.kind={__name__}.Breaking"
    return ["experiment=quickstart", *kept, own, "schedule=constant", "launch.nproc=1", "tracker.progress=false"]


def kept_steps(run: Path) -> list[int]:
    """The steps of a run's complete checkpoints, whose weights are all finite."""
    found = committed(run)
    for checkpoint in found:
        for file in (checkpoint / "model").glob("*.safetensors"):
            assert all(bool(torch.isfinite(tensor).all()) for tensor in load_file(file).values())
    return [int(checkpoint.name.removeprefix("step-")) for checkpoint in found]


@pytest.mark.parametrize(
    ("more", "said", "kept"),
    [
        (["train.steps=9", "checkpoint.every=1"], "step 3: the weights are not finite", [1, 2]),
        (["train.steps=9", "checkpoint.every=1", "checkpoint.async_save=false"], "step 3: the weights", [1, 2]),
        (["train.steps=9", "checkpoint.every=2"], "step 4: the weights are not finite", [2]),
        (["train.steps=3", "checkpoint.every=2"], "step 3: the weights are not finite", [2]),
        (["train.steps=3", "checkpoint.every=2", "evals.every=3"], "step 3: the weights are not finite", [2]),
        (["train.steps=3"], "there is no checkpoint yet", []),
        (["train.steps=9", "checkpoint.every=2", "+optimizer.options.stopping=3"], "step 3: the weights", [2]),
    ],
    ids=["every step", "not in the background", "later", "last step", "evaluated first", "no checkpoint", "SIGTERM"],
)
def test_weights_that_are_not_finite_are_not_saved(
    more: list[str],
    said: str,
    kept: list[int],
    overrides: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if not any(o.startswith("evals.every") for o in more):
        more = [*more, "evals.every=0"]
    assert main(["train", *overrides, *more, f"run.dir={tmp_path / 'run'}"]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in last and "optimizer.lr=0.001" in last and kept_steps(tmp_path / "run") == kept
    assert not kept or f"checkpoint of step {kept[-1]} is kept" in last


def test_a_signal_saves_the_last_finite_weights(
    overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["train.steps=9", "checkpoint.every=100", "+optimizer.options.stopping=2", "evals.every=0"]
    assert main(["train", *overrides, *more, f"run.dir={tmp_path / 'run'}"]) == 0
    assert "stopped at step 2; the same command resumes" in capsys.readouterr().err
    assert kept_steps(tmp_path / "run") == [2]


def test_a_save_waits_while_steps_are_left_out(
    overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Finite weights with which no loss can be computed: those of the step before stay the newest."""
    more = ["train.steps=20", "checkpoint.every=2", "checkpoint.keep=1", "train.max_skipped=5", "evals.every=0"]
    factor = "+optimizer.options.factor=finite, but too large to compute with"
    assert main(["train", *overrides, *more, factor, f"run.dir={tmp_path / 'run'}"]) == 2
    assert "train.max_skipped=5" in capsys.readouterr().err.strip().splitlines()[-1]
    assert kept_steps(tmp_path / "run") == [2]


def test_a_model_that_is_not_finite_is_not_trained_on(
    overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sound = [o for o in overrides if not o.startswith("optimizer.kind")]
    run = [*sound, "evals.every=0", f"run.dir={tmp_path / 'run'}"]
    assert main(["train", *run, "train.steps=1"]) == 0
    model = committed(tmp_path / "run")[-1] / "model" / "model.safetensors"
    tensors = load_file(model)
    next(iter(tensors.values())).view(-1)[0] = math.nan
    save_file(tensors, model, metadata={"format": "pt"})
    capsys.readouterr()
    assert main(["train", *run, "train.steps=2"]) == 2
    err = capsys.readouterr().err.strip()
    assert "holds weights that are not finite" in err.splitlines()[-1] and "checkpoint.resume=" in err


def test_every_value_of_weights_and_state_counts() -> None:
    first = torch.nn.Linear(3, 2)
    model = torch.nn.Sequential(first, torch.nn.Linear(2, 1))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    moments: torch.Tensor = optimizer.state[first.weight]["exp_avg_sq"]
    with process_group() as world:
        assert dist.get_world_size() == 1 and all_finite(model, optimizer, world)
        for tensor in (first.bias.data, moments):
            for value in (math.inf, -math.inf, math.nan):
                before = tensor.clone()
                tensor.view(-1)[1] = value
                assert not all_finite(model, optimizer, world)
                tensor.copy_(before)
        assert all_finite(model, optimizer, world)
