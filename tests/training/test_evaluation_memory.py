"""An evaluation while training holds the whole model only where there is room for it, and measures the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from liquid_train.cli import main
from liquid_train.distributed import free_memory
from liquid_train.training import evaluation
from tests.distributed.running import TIMINGS, metrics
from tests.shard_sets import mixture_overrides


def test_a_model_that_does_not_fit_is_gathered_block_by_block(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = mixture_overrides(tmp_path)
    counts = ["evals.images=2", "evals.vqa_samples=3", "evals.quality_images=0", "evals.caption_images=2"]
    usual = ["train", "experiment=quickstart", *data, "launch.nproc=1", "train.steps=2", "evals.every=1", *counts]
    found = {}
    for name, free, more in (("roomy", 2**40, []), ("tight", 100_000, []), ("asked", 2**40, ["evals.weights=sharded"])):
        monkeypatch.setattr(evaluation, "free_bytes", lambda _, free=free: free)
        assert main([*usual, f"run.dir={tmp_path / name}", *more]) == 0
        lines = [line for line in metrics(tmp_path / name) if any(key.startswith("eval/") for key in line)]
        found[name] = [{key: value for key, value in line.items() if key not in TIMINGS} for line in lines]
        said = capsys.readouterr().err.count("evaluation: the whole model takes ")
        assert said == (name == "tight"), "once, and only where it does not fit"
    assert len(found["roomy"]) == 2
    # its decoder is transformers' own, whose last bits are others
    for one, other in zip(found["roomy"], found["tight"], strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-4)
    assert found["asked"] == found["tight"]


def test_the_ranks_of_a_machine_share_what_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       20000 kB\nMemFree:   100 kB\nMemAvailable:    8000 kB\n")
    monkeypatch.setattr(free_memory, "MEMINFO", meminfo)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert free_memory.free_bytes(torch.device("cpu")) == 2000 * 1024
    monkeypatch.setattr(free_memory, "MEMINFO", tmp_path / "none")
    assert free_memory.free_bytes(torch.device("cpu")) > 2**50
