"""Which architectures tensor parallelism cuts; that the cut ones compute the same is in test_layouts.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from liquid_train.distributed.tensor_parallel import check_tensor_degree
from liquid_train.errors import UserError

SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64, "pad_token_id": 0}


def on_meta(model_type: str, **fields: Any) -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **SIZES | fields))


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "llama", "gemma2", "gemma3_text", "smollm3", "granite"])
def test_what_is_cut(model_type: str) -> None:
    assert check_tensor_degree(on_meta(model_type, num_key_value_heads=2), 2)


@pytest.mark.parametrize(
    ("model_type", "fields", "reason"),
    [
        ("qwen2", {"num_key_value_heads": 1}, "does not divide the model's num_key_value_heads=1"),
        ("phi", {"num_key_value_heads": 4}, "the head of phi has a bias, which is not cut"),
        ("olmo2", {"num_key_value_heads": 4}, "plan for olmo2 has colwise_gather_output, rowwise_split_input"),
        ("gpt_oss", {"num_key_value_heads": 2}, "plan for gpt_oss has embedding_rowwise next to plain cuts"),
        ("qwen3_moe", {"num_key_value_heads": 2}, "plan for qwen3_moe has moe_tp_experts, packed_colwise"),
        # its norms have a weight for each head, of which a rank has a part
        ("cohere", {"num_key_value_heads": 4, "use_qk_norm": True}, "says nothing of layers.0.self_attn.q_norm"),
    ],
)
def test_what_is_not_is_said_in_one_line(model_type: str, fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError) as refused:
        check_tensor_degree(on_meta(model_type, **fields), 2)
    assert reason in str(refused.value) and "\n" not in str(refused.value)
