"""With gradient accumulation a rank keeps the gradients of its own shard, not of the whole model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.distributed import live_bytes
from tests.distributed.running import arguments, make_data
from tests.forked import run_ranks

LAYOUTS = {"fsdp 2": (2, []), "hsdp 2x2": (4, ["parallel.replicate=2"])}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("memory"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_accumulated_gradients_are_sharded(layout: str, root: Path) -> None:
    ranks, more = LAYOUTS[layout]
    batch = [f"data.global_batch={4 * ranks}", "train.micro_batch=1", "train.steps=2", "data.workers=0"]
    result = root / f"{ranks}.json"
    run_ranks(live_bytes.main, (arguments(root, f"run-{ranks}", *batch, *more), result), ranks)
    found = json.loads(result.read_text())
    first, *others = found["live"]
    assert len(others) == 3
    for live in others:  # what the first micro-batch adds: the shard's gradients, in fp32, and nothing else that counts
        assert 0.9 * found["shard"] < live - first < 1.2 * found["shard"]
    assert found["whole"] > 1.9 * found["shard"]
