"""Training from a folder that stores experts one by one: the same on 1 and 2 ranks, resumed, exported, plain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from liquid_train.checkpoint.export import export
from tests.distributed.running import make_data, metrics, train
from tests.model.test_backbone import pretrained

EXPERT = "model.layers.1.mlp.experts.3.down_proj.weight"
KEYS = (
    "backbone=folder",
    "backbone.init=pretrained",
    "optimizer.lr=1e-3",
    "parallel.precision=fp32",
    "data.workers=0",
    "checkpoint.every=2",
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_data(tmp_path_factory.mktemp("experts"))
    fields = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
    pretrained(root / "hub", "qwen3_moe", True, 0, **fields)
    return root


def logits(folder: Path) -> torch.Tensor:
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    model, info = loaded
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with torch.no_grad():
        return model(torch.arange(40)[None]).logits


def test_one_rank_and_two_train_resume_and_export(root: Path) -> None:
    hub = f"backbone.path={root / 'hub'}"
    train(root, "one", *KEYS, hub, "train.steps=4", "launch.nproc=1")
    train(root, "two", *KEYS, hub, "train.steps=4", "launch.nproc=2")
    half = root / "one" / "checkpoints" / "step-00000002"
    train(root, "resumed", *KEYS, hub, "train.steps=4", "launch.nproc=2", f"checkpoint.resume={half}")
    one = [m["loss"] for m in metrics(root / "one")]
    assert [m["loss"] for m in metrics(root / "two")] == pytest.approx(one, abs=2e-5)
    assert [m["loss"] for m in metrics(root / "resumed")][-2:] == pytest.approx(one[-2:], abs=2e-5)
    model = root / "one" / "checkpoints" / "step-00000004" / "model"
    with safe_open(model / "model.safetensors", "pt") as file:
        assert EXPERT in file.keys()  # noqa: SIM118 - a file, not a dict
    export(model, root / "exported")
    assert torch.equal(logits(root / "exported"), logits(model))
    torch.testing.assert_close(
        logits(root / "resumed" / "checkpoints" / "step-00000004" / "model"), logits(model), atol=1e-4, rtol=1e-4
    )
