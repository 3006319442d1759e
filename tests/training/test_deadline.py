"""A run whose time is over has saved and ended before."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from liquid_train.checkpoint.folder import committed, step_of
from liquid_train.cli import main
from liquid_train.errors import UserError
from liquid_train.training.deadline import Deadline
from tests.distributed.running import metrics
from tests.shard_sets import mixture_overrides


def test_a_run_saves_and_ends_in_time_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    usual = ["train", "experiment=quickstart", *mixture_overrides(tmp_path), f"run.dir={tmp_path / 'run'}"]
    usual += ["launch.nproc=1", "evals.every=0", "checkpoint.every=1000000", "tracker.progress=false"]
    assert main([*usual, "train.steps=1000000", "train.time_limit=4"]) == 0
    (saved,) = committed(tmp_path / "run")
    last = step_of(saved)
    assert f"stopped at step {last} (its time is over); the same command resumes" in capsys.readouterr().err
    assert main([*usual, f"train.steps={last + 2}"]) == 0
    assert [line["step"] for line in metrics(tmp_path / "run")] == list(range(1, last + 3))


def test_slurm_says_when_its_job_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_END_TIME", raising=False)
    assert not Deadline(None).near
    now = int(time.time())
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(now + 100_000))
    job = Deadline(None)
    assert not job.near
    job.step_took(99_990.0)  # the first, which compiled
    assert not job.near
    job.step_took(99_990.0)
    assert job.near, "the next one might take as long"
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(now + 100))
    assert not Deadline(None).near, "a tenth of what there is, where that is less than two minutes"
    assert not Deadline(1e6).near and Deadline(1e-9).near
    monkeypatch.setenv("SLURM_JOB_END_TIME", "tomorrow")
    with pytest.raises(UserError, match="SLURM_JOB_END_TIME=tomorrow: not a time in seconds"):
        Deadline(None)
