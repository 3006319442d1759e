"""Folders that store experts one by one: read part by part, and written as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from liquid_train.errors import UserError
from liquid_train.model import backbone
from liquid_train.model.settings import BackboneConfig
from liquid_train.scaling.planner import stand_in_tokenizer
from liquid_train.vocabulary import Vocabulary
from tests.forked import spawn

ROWS = 101  # of the table: not a multiple of the ranks
EXPERTS: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    "qwen2_moe": {"num_experts": 4, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24},
    "olmoe": {"num_experts": 4},
    "mixtral": {"num_local_experts": 4},
    "phimoe": {"num_local_experts": 4},
    "gpt_oss": {"num_local_experts": 4},
    "granitemoe": {"num_local_experts": 4},
    "qwen3": {},
}


def folder_of(folder: Path, model_type: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model of random weights that transformers has saved, as the hub's folders are."""
    config = AutoConfig.for_model(
        model_type,
        vocab_size=ROWS,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **EXPERTS[model_type],
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.save_pretrained(folder, max_shard_size="20KB")
    return model


def built(folder: Path) -> PreTrainedModel:
    config = backbone.model_config(BackboneConfig(path=str(folder)), 0)
    return backbone.build(config, Vocabulary(stand_in_tokenizer(ROWS), 0, ROWS))


def stored_tensors(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, Any] = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - a file, not a dict
    return found


@pytest.mark.parametrize("model_type", EXPERTS)
def test_read_and_written_as_transformers_does(model_type: str, tmp_path: Path) -> None:
    theirs = folder_of(tmp_path, model_type)
    ours = built(tmp_path)
    backbone.materialize(ours, torch.device("cpu"))
    loaded = backbone.fill_from_folder(ours, tmp_path)
    held = dict(theirs.named_parameters())
    assert all(torch.equal(p, held[name]) for name, p in ours.named_parameters())
    stored, written = stored_tensors(tmp_path), dict(backbone.named_full_tensors(ours))
    assert {*written} == {*stored} and all(torch.equal(written[name], stored[name]) for name in stored)
    shapes = [(name, tensor.shape) for name, tensor in backbone.stored_shapes(ours)]
    assert shapes == [(name, tensor.shape) for name, tensor in written.items()]
    assert loaded.read == sum(t.nbytes for t in stored.values()), "everything once"


def test_experts_that_are_held_in_one_piece_are_read_too(tmp_path: Path) -> None:
    """As checkpoints of before have them."""
    theirs = folder_of(tmp_path, "qwen3_moe")
    theirs.save_pretrained(tmp_path / "fused", save_original_format=False)
    assert "model.layers.0.mlp.experts.gate_up_proj" in stored_tensors(tmp_path / "fused")
    ours = built(tmp_path / "fused")
    backbone.materialize(ours, torch.device("cpu"))
    backbone.fill_from_folder(ours, tmp_path / "fused")
    held = dict(theirs.named_parameters())
    assert all(torch.equal(p, held[name]) for name, p in ours.named_parameters())


def test_an_expert_that_is_missing_is_named(tmp_path: Path) -> None:
    folder_of(tmp_path, "qwen3_moe")
    one = next(p for p in tmp_path.glob("*.safetensors") if "model.layers.1.mlp.experts.3.up_proj.weight" in names(p))
    kept = {n: t for n, t in stored_tensors(tmp_path).items() if n in names(one) and "experts.3.up_proj" not in n}
    save_file(kept, one)
    ours = built(tmp_path)
    backbone.materialize(ours, torch.device("cpu"))
    with pytest.raises(UserError, match=r"model\.layers\.1\.mlp\.experts\.gate_up_proj has .* the model needs"):
        backbone.fill_from_folder(ours, tmp_path)


def names(path: Path) -> set[str]:
    with safe_open(path, "pt") as file:
        return set(file.keys())


def rank_main(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    model = built(folder)
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("shard",))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    backbone.materialize(model, torch.device("cpu"))
    loaded = backbone.fill_from_folder(model, folder)
    own = sum(backbone.block_of(p)[0].numel() for p in model.parameters())
    assert loaded.read == 2 * own, "bf16: two bytes for each weight that this rank holds"
    total = torch.tensor([loaded.read])
    dist.all_reduce(total)
    stored = stored_tensors(folder)
    assert total.item() == sum(t.nbytes for t in stored.values()), "and both ranks together each byte once"
    for name, tensor in backbone.named_full_tensors(model):
        assert torch.equal(tensor, stored[name].float()), name
    dist.destroy_process_group()


@pytest.mark.parametrize("model_type", ["qwen3_moe", "qwen3"])
def test_two_ranks_read_every_byte_once(model_type: str, tmp_path: Path) -> None:
    folder_of(tmp_path, model_type, torch.bfloat16)
    spawn(rank_main, (tmp_path,), nprocs=2)
