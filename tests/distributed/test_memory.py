"""What lives on a rank at every point of a step: its shard's weights, gradients and optimizer state, the activations of
one micro-batch, and the parameters that wait for the backward."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import live_bytes
from tests.distributed.running import arguments, make_data
from tests.forked import run_ranks

# ranks, micro-batches (accumulation 1 and 4), overrides
LAYOUTS = {"fsdp 2": (2, (4, 1), []), "hsdp 2x2": (4, (1,), ["parallel.replicate=2"])}
# large enough that batches, tables of positions and the like are no more than a few percent
SIZE = ["hidden_size=192", "intermediate_size=512", "num_hidden_layers=4", "num_attention_heads=4"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("memory"))


def measure(root: Path, ranks: int, micro_batch: int, more: list[str]) -> dict[str, Any]:
    batch = [f"data.global_batch={4 * ranks}", f"train.micro_batch={micro_batch}", "train.steps=2", "data.workers=0"]
    model = [f"backbone.architecture.{field}" for field in SIZE]
    name = f"{ranks}-{micro_batch}"
    result = root / f"{name}.json"
    run_ranks(live_bytes.main, (arguments(root, f"run-{name}", *batch, *model, *more), result), ranks)
    found: dict[str, Any] = json.loads(result.read_text())
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_keeps_to_its_shard(layout: str, root: Path) -> None:
    """weights + state = 3 shards, with gradients 4; from the first micro-batch's backward on gradients are there."""
    ranks, micro_batches, more = LAYOUTS[layout]
    activations = {}
    for micro_batch in micro_batches:
        found = measure(root, ranks, micro_batch, more)
        shard, gathered = found["shard"], found["gathered"]
        assert found["whole"] > 1.9 * shard
        assert found["end"] == [pytest.approx(3 * shard, rel=0.06)]
        assert found["gradients"] == [pytest.approx(4 * shard, rel=0.06)]
        first, *others = found["begin"]
        assert first == pytest.approx(3 * shard, rel=0.06) and len(others) == 4 // micro_batch - 1
        assert all(begin == pytest.approx(4 * shard, rel=0.06) for begin in others)
        own = [after - before - gathered for before, after in zip(found["begin"], found["forward"], strict=True)]
        assert max(own) < 1.25 * min(own), "the activations of one micro-batch, whichever it is"
        activations[micro_batch] = max(own)
    assert len(activations) == 1 or activations[1] < 0.45 * activations[4], "and of a smaller one fewer"
