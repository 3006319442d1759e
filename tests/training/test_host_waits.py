"""How often the host waits for the device in a step: each time the device then has nothing queued, and stands still."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

from liquid_train.config.compose import load
from liquid_train.distributed.parallelize import process_group
from liquid_train.training import trainer as training
from tests.shard_sets import mixture_overrides

# what a GPU's host waits for: one value, and results whose size depends on values
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "unique_consecutive", "_unique2", "equal", "item"}


class Waits(TorchDispatchMode):
    """Counts the operators that make the host wait. Tensor.tolist and copies between devices are none on a CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = operator.__name__.partition(".")[0]
        self.found.update([name] if name in WAITS else [])
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize("model_type", ["qwen2", "gemma2", "llama"])
def test_a_step_does_not_wait_for_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_type: str) -> None:
    """Of the step's three micro-batches none waits; their targets' places are found before they are moved."""
    monkeypatch.setattr(training, "shares_and_losses", lambda *_: {})  # reads what is on the host by then
    shape = [f"backbone.architecture.model_type={model_type}", "train.micro_batch=1", "data.global_batch=3"]
    options = ["train.steps=3", "evals.every=0", "data.workers=0", *shape]
    config = load("train", ["experiment=quickstart", *mixture_overrides(tmp_path), *options])
    with process_group() as world:
        trainer = training.Trainer(config, world)
        waits = []
        for batch in trainer.batches():
            with Waits() as mode:
                result = trainer.step(batch)
            waits.append(mode.found)
            trainer.log(batch, result)
        trainer.close()
    assert len(waits) == 3 and waits[1] == waits[2] == {"nonzero": 3}, waits
