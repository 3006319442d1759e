"""Settings changed on the way: recorded with the step after which they count, and shown in the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from liquid_train.cli import main
from tests.shard_sets import mixture_overrides


def test_changed_settings_are_recorded_with_their_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    arguments = ["train", "experiment=quickstart", *mixture_overrides(tmp_path), "launch.nproc=1", "evals.every=0"]
    arguments += ["schedule=cosine", "schedule.warmup=1", "schedule.min_lr=0", "optimizer.lr=0.01"]
    assert main([*arguments, "train.steps=2"]) == 0
    assert not (run / "config_history.jsonl").exists()
    longer = [*arguments, "train.steps=4", "tracker.every=2", "optimizer.lr=0.02"]
    capsys.readouterr()
    assert main([*longer, "launch.nproc=1"]) == 0
    # step 3 is 2 / 3 of the way from 0.02 to 0; at two steps in all the last one was the nearest to it
    assert "the learning rate of step 3 is 0.015, it was to be 0.01 (" in capsys.readouterr().err
    (line,) = [json.loads(line) for line in (run / "config_history.jsonl").read_text().splitlines()]
    assert line["step"] == 2
    assert line["changes"] == {"optimizer.lr": [0.01, 0.02], "tracker.every": [1, 2], "train.steps": [2, 4]}
    assert main([*longer, "train.steps=5"]) == 0
    assert main([*longer, "train.steps=5", "backbone.architecture.hidden_size=48"]) == 2
    history = [json.loads(line) for line in (run / "config_history.jsonl").read_text().splitlines()]
    assert [(line["step"], list(line["changes"])) for line in history[1:]] == [(4, ["train.steps"])]
    assert main(["run", "report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "<td>2</td><td>optimizer.lr</td><td>0.01</td><td>0.02</td>" in page


def test_a_branch_is_compared_with_the_run_it_leaves(tmp_path: Path) -> None:
    arguments = ["train", "experiment=quickstart", *mixture_overrides(tmp_path), "launch.nproc=1", "evals.every=0"]
    assert main([*arguments, "train.steps=1"]) == 0
    trunk = tmp_path / "run" / "checkpoints" / "step-00000001"
    branch = [f"run.dir={tmp_path / 'branch'}", f"checkpoint.resume={trunk}", "loss.z_loss=0.1", "train.steps=2"]
    assert main([*arguments, *branch]) == 0
    (line,) = [json.loads(line) for line in (tmp_path / "branch" / "config_history.jsonl").read_text().splitlines()]
    assert line["step"] == 1 and line["changes"]["loss.z_loss"] == [0.0, 0.1]
