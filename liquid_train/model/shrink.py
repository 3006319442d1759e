"""A small copy of an architecture: widths of a few dozen, and as many blocks as show every kind that it has."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

# Fields that count something, and the most that the copy keeps of it. A window is shorter than the documents of the
# proof, so that it hides something.
MOST = {
    "vocab_size": 96,
    "vocab_size_per_layer_input": 96,
    "intermediate_size": 48,
    "ffn_dim": 48,
    "ffn_hidden_size": 48,
    "intermediate_size_mlp": 48,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    "shared_intermediate_size": 24,
    "hidden_size_per_layer_input": 16,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "num_selected_experts": 2,
    "moe_top_k": 2,
    "moe_k": 2,
    "n_group": 1,
    "topk_group": 1,
    "sliding_window": 6,
    "attention_window_size": 6,
    "attention_chunk_size": 6,
    "local_attention_window": 6,
    "window_size": 6,
    "q_lora_rank": 24,
    "kv_lora_rank": 24,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "qk_head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
HEAD_DIM = 16
MOST_PAIRS, MOST_GROUPS = 2, 4  # heads of keys, and heads of queries for each of them
OF_PLACE = ("layer_idx", "layer_id", "training")  # attributes of modules that tell their place and not their kind
NOISE = re.compile(r"dropout|_pdrop|jitter")
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def shrunken(config: PreTrainedConfig) -> PreTrainedConfig:
    """A copy of `config` with narrow blocks, no more of them than it takes to have one of each kind.

    Raises whatever transformers raises where the narrow sizes do not fit together.
    """
    fields = json.loads(json.dumps(config.to_dict(), default=str))
    layers = kinds_of_blocks(config)
    count = len(layers)
    fields.update(_narrow(fields))
    for name, value in fields.items():
        if isinstance(value, list) and len(value) == count:  # one entry a block
            fields[name] = value[: blocks_needed(layers)]
    fields["num_hidden_layers"] = blocks_needed(layers)
    for name in TOKEN_IDS:
        fields[name] = 0
    fields.pop("dtype", None)
    small = type(config).from_dict(fields)
    remove_noise(small)
    return small


def remove_noise(config: PreTrainedConfig) -> None:
    """Set what would make training random to 0, in place: dropout, and jitter of routers."""
    for name, value in config.to_dict().items():
        if NOISE.search(name) and isinstance(value, int | float) and not isinstance(value, bool) and value:
            setattr(config, name, 0.0)


def _narrow(fields: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, most in MOST.items():
        if isinstance(fields.get(name), int) and not isinstance(fields[name], bool):
            found[name] = min(fields[name], most)
    heads, pairs = fields.get("num_attention_heads"), fields.get("num_key_value_heads")
    if isinstance(heads, int) and heads > 0:
        pairs = pairs if isinstance(pairs, int) and pairs > 0 else heads
        new_pairs = min(pairs, MOST_PAIRS)
        new_heads = new_pairs * min(MOST_GROUPS, max(1, heads // pairs))
        found["num_attention_heads"] = new_heads
        if isinstance(fields.get("num_key_value_heads"), int):
            found["num_key_value_heads"] = new_pairs
        found["hidden_size"] = HEAD_DIM * new_heads
        width = fields.get("head_dim")
        if isinstance(width, int):
            found["head_dim"] = HEAD_DIM
            if width * heads != fields.get("hidden_size"):  # heads that are not parts of the hidden state
                found["hidden_size"] = HEAD_DIM * 2 * new_pairs
    for name in ("rope_parameters", "rope_scaling"):
        rope = fields.get(name)
        if isinstance(rope, dict) and any(isinstance(value, list) for value in rope.values()):
            share = rope.get("partial_rotary_factor", fields.get("partial_rotary_factor", 1.0))
            pairs_turned = int(HEAD_DIM * share) // 2
            found[name] = {k: v[:pairs_turned] if isinstance(v, list) else v for k, v in rope.items()}
    return found


def kinds_of_blocks(config: PreTrainedConfig) -> list[str]:
    """For each block, a text that is equal for blocks of one kind: the classes of its parts and what they say of
    themselves."""
    return [" ".join(_traits(block)) for block in meta_model(config).model.layers]


def meta_model(config: PreTrainedConfig, **options: Any) -> Any:
    """The fp32 model of a config on the meta device. options: of transformers' from_config."""
    copied = type(config).from_dict(config.to_dict())
    for name in TOKEN_IDS:
        setattr(copied, name, 0)  # the tokenizer's are not known yet
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(copied, dtype=torch.float32, **options)


def _traits(block: nn.Module) -> Iterator[str]:
    for name, module in block.named_modules():
        yield f"{name}:{type(module).__name__}"
        for key, value in sorted(vars(module).items()):
            if not key.startswith("_") and key not in OF_PLACE and isinstance(value, bool | int | str | float | None):
                yield f"{key}={value}"


def blocks_needed(kinds: list[str]) -> int:
    """How many of the first blocks have one of every kind; two at least."""
    last = max(kinds.index(kind) for kind in set(kinds))
    return min(len(kinds), max(2, last + 1))
