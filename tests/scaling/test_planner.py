"""`liquid plan`: what it counts against sums made without sharding, against real gradients and optimizer state, and its
messages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from liquid_train.cli import main
from liquid_train.config.compose import load
from liquid_train.optim.optimizer import build_optimizer
from liquid_train.scaling.planner import fake_process_group, make_plan

QWEN_32B = {
    "vocab_size": 152_064,
    "hidden_size": 5120,
    "intermediate_size": 27_648,
    "num_hidden_layers": 64,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
}


def planned(capsys: pytest.CaptureFixture[str], *overrides: str) -> dict[str, Any]:
    assert main(["plan", *overrides, "format=json"]) == 0
    return json.loads(capsys.readouterr().out)


def first_shard(parameter: Tensor, ranks: int) -> int:
    """Elements of rank 0's share when the rows are dealt out in blocks as even as they can be."""
    return -(-parameter.shape[0] // ranks) * parameter[0].numel()


def test_32b_on_512_ranks(capsys: pytest.CaptureFixture[str]) -> None:
    plan = planned(capsys, "backbone=qwen2.5-32b", "parallel.shard=512")
    assert plan["parameters"] == 32_763_876_352
    assert plan["parameters_extended"] == 32_763_876_352 + 2 * 8192 * 5120, (
        "a row for each code in the embedding and in the head"
    )
    assert plan["vocabulary_rows"] == 152_064 + 8192 and plan["ranks"] == 512
    config = AutoConfig.for_model("qwen2", **{**QWEN_32B, "vocab_size": 152_064 + 8192}, tie_word_embeddings=False)
    with torch.device("meta"):
        parameters = list(AutoModelForCausalLM.from_config(config).parameters())
    share = sum(first_shard(p, 512) for p in parameters)
    assert plan["weights_bytes_per_rank"] == plan["gradients_bytes_per_rank"] == 4 * share
    assert plan["optimizer_bytes_per_rank"] == 8 * share + 4 * len(parameters)
    assert plan["total_bytes_per_rank"] == 16 * share + 4 * len(parameters)
    assert not dist.is_initialized()


def test_tied_rows_count_once(capsys: pytest.CaptureFixture[str]) -> None:
    plan = planned(capsys, "backbone=qwen2.5-0.5b", "parallel.shard=8")
    assert plan["parameters_extended"] == 494_032_768 + 8192 * 896 and plan["vocabulary_rows"] == 160_128


def test_one_rank_holds_what_training_really_allocates(capsys: pytest.CaptureFixture[str]) -> None:
    plan = planned(capsys, "experiment=quickstart", "parallel.shard=1")
    c = load("train", ["experiment=quickstart"])
    assert plan["vocabulary_rows"] == 1024 + 1024, "the experiment's own image tokenizer, not the published one"
    fields = dict(c.backbone.architecture)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(fields.pop("model_type"), vocab_size=2048, **fields))
    optimizer = build_optimizer(model, c.optimizer)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    state = [t for s in optimizer.state.values() for t in s.values() if torch.is_tensor(t)]
    assert plan["weights_bytes_per_rank"] == sum(p.nbytes for p in model.parameters())
    assert plan["gradients_bytes_per_rank"] == sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    assert plan["optimizer_bytes_per_rank"] == sum(t.nbytes for t in state)


def test_replicas_share_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    one = planned(capsys, "backbone=gemma2-2b", "parallel.shard=4")
    two = planned(capsys, "backbone=gemma2-2b", "parallel.shard=4", "parallel.replicate=2")
    assert (one.pop("ranks"), two.pop("ranks")) == (4, 8) and one == two


def test_shard_minus_one_means_the_ranks_that_training_would_start(capsys: pytest.CaptureFixture[str]) -> None:
    assert planned(capsys, "launch.nproc=6", "parallel.replicate=2")["ranks"] == 6
    here = planned(capsys)["ranks"]
    assert here == max(1, torch.cuda.device_count())


def test_an_experiment_is_planned_without_its_weights(capsys: pytest.CaptureFixture[str]) -> None:
    plan = planned(capsys, "experiment=liquid/1b", "parallel.shard=16")
    assert (plan["parameters"], plan["parameters_extended"]) == (1_235_814_400, 1_235_814_400 + 8192 * 2048)


def test_a_folder_is_planned_by_its_config_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = AutoConfig.for_model(
        "llama", vocab_size=700, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
    )
    config.save_pretrained(tmp_path)
    plan = planned(capsys, "backbone=folder", f"backbone.path={tmp_path}", "vq=easy", "parallel.shard=2")
    assert plan["parameters_extended"] - plan["parameters"] == 2 * 1024 * 32 and plan["vocabulary_rows"] == 1724


def test_the_table_names_the_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "backbone=qwen2.5-7b", "parallel.shard=64"]) == 0
    out = capsys.readouterr().out
    assert "7,615,616,512" in out and "optimizer, GiB a rank" in out and "64 rank" in out


MISTAKES = {
    "unknown backbone": (["backbone=huge"], "backbone=huge: no such config; one of folder"),
    "degrees against ranks": (
        ["parallel.replicate=2", "parallel.shard=3", "launch.nproc=4"],
        "parallel.replicate=2 x parallel.shard=3",
    ),
    "replicas of a single device": (["parallel.replicate=2", "launch.nproc=1"], "do not multiply to the 1 ranks"),
    "no shard": (["parallel.shard=0"], "parallel.shard=0: must be 1 or more, or -1"),
    "no replica": (["parallel.replicate=0"], "parallel.replicate=0: between 1 and 100000"),
    "format": (["format=xml"], "format=xml: one of table, json"),
    "misspelt key": (["paralel.shard=2"], "paralel.shard: no such key; did you mean parallel.shard?"),
    "unknown architecture": (["backbone.architecture.model_type=nothing"], "backbone.architecture.model_type=nothing"),
    "no VQ": (["vq.config=nowhere.yaml"], "nowhere.yaml"),
    "no tokenizer": (["backbone.tokenizer=nowhere"], "backbone.tokenizer=nowhere: no tokenizer.json there"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    overrides, message = MISTAKES[name]
    assert main(["plan", *overrides]) == 2
    out, err = capsys.readouterr()
    assert message in err and len(err.strip().splitlines()) == 1 and not out


def test_the_fake_group_is_gone_after_an_error() -> None:
    with pytest.raises(RuntimeError, match="inside"), fake_process_group(4, 1) as world:
        assert (world.size, dist.get_world_size()) == (4, 4)
        raise RuntimeError("inside")
    assert not dist.is_initialized()
    assert make_plan(load("plan", ["parallel.shard=3"])).ranks == 3


def test_a_degree_that_cannot_be_is_refused_before_a_mesh_of_it_is_made(capsys: pytest.CaptureFixture[str]) -> None:
    """A mesh of a degree that does not divide the model once hung."""
    assert main(["plan", "backbone=tiny", "parallel.tensor=7", "parallel.shard=1"]) == 2
    assert "parallel.tensor=7: does not divide the model's num_attention_heads=" in capsys.readouterr().err
    assert not dist.is_initialized()
