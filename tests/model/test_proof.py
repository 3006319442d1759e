"""The proof of an architecture: what trains right passes, and every kind of fault is found."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from liquid_train.errors import UserError
from liquid_train.generate import backbone_proof
from liquid_train.generate.backbone_proof import check_proof, proof_file, prove, remembered_proof
from liquid_train.generate.decoder import CachedDecoder
from liquid_train.model import attention
from liquid_train.model.architecture import check_model
from liquid_train.model.families import Family
from liquid_train.model.shrink import blocks_needed, kinds_of_blocks, remove_noise, shrunken

# transformers' default of each type, at full size
TRAINED = (
    *("qwen2", "qwen3", "qwen3_moe", "llama", "gemma", "gemma2", "gemma3_text", "smollm3", "olmo2", "olmo3", "granite"),
    *("cohere", "cohere2", "phi", "phi3", "gpt_oss", "mistral", "mixtral", "deepseek_v3"),
)

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "qwen3_next": ({}, "the loss of packed documents is not that of separate ones"),  # linear attention
    "lfm2": ({"full_attn_idxs": [1]}, "the loss of packed documents is not that of separate ones"),  # convolutions
    "llama4_text": ({}, "the loss of packed documents is not that of separate ones"),  # chunks
    "falcon_h1": ({}, "the loss of packed documents is not that of separate ones"),  # Mamba next to attention
    "stablelm": ({}, "packed rows cannot be computed: attention 'liquid_packed' needs document_plan="),
    "gemma4_text": ({}, ""),  # a second table, indexed by the ids
    "bamba": ({}, "no small copy of it can be run"),
    "gemma3n_text": ({}, "no small copy of it can be made: this one has"),
}


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("model_type", TRAINED)
def test_what_trains_right_is_proved(model_type: str) -> None:
    config = CONFIG_MAPPING[model_type]()
    check_model(config, "backbone")
    found = prove(config)
    assert found.wrong is None and 0 < found.difference < 1e-4


@pytest.mark.parametrize("model_type", REFUSED)
def test_what_does_not_is_told_in_a_few_words(model_type: str) -> None:
    fields, reason = REFUSED[model_type]
    wrong = prove(CONFIG_MAPPING[model_type](**fields)).wrong
    assert wrong is not None and wrong.startswith(reason) and "\n" not in wrong and len(wrong) < 300


SMALL: dict[str, Any] = {
    "num_hidden_layers": 8,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 128,
}


def small(model_type: str, **fields: Any) -> PreTrainedConfig:
    return AutoConfig.for_model(model_type, **SMALL | fields)


def test_faults_of_every_kind_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each half of what is proved fails when that half is wrong."""

    def wrong(model_type: str, owner: Any, name: str, value: Any, **fields: Any) -> str:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, value)
            return str(prove(small(model_type, **fields)).wrong)

    separate = "the loss of packed documents is not that of separate ones"
    assert separate in wrong("granite", Family, "logit_scale", lambda *_: 1.0, logits_scaling=4.0)
    plain = attention.padded_sdpa
    for option in ("sinks", "window"):
        without = {**attention.KERNELS, "padded_sdpa": lambda *a, o=option, **k: plain(*a, **{**k, o: None})}
        assert separate in wrong("gpt_oss", attention, "KERNELS", without, num_local_experts=2, num_experts_per_tok=1)

    def leaking(q: Any, k: Any, v: Any, plan: Any, **_: Any) -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(
            1, 2
        )

    assert separate in wrong("llama", attention, "KERNELS", {"padded_sdpa": leaking})
    decoded = "decoding with a cache gives other logits"
    masks = CachedDecoder._masks

    def without_window(decoder: CachedDecoder, start: int, width: int) -> Any:
        decoder.window = None
        return masks(decoder, start, width)

    assert decoded in wrong("phi3", CachedDecoder, "_masks", without_window, sliding_window=64)


def test_a_copy_has_every_kind_of_block_and_little_else() -> None:
    gemma = CONFIG_MAPPING["gemma3_text"]()  # 26 blocks, of which every sixth sees everything
    copy = shrunken(gemma)
    assert copy.layer_types == gemma.layer_types[:6] and len(set(copy.layer_types)) == 2
    assert copy.sliding_window < 10 and len(set(kinds_of_blocks(gemma))) == 2
    assert (
        blocks_needed(["a", "a", "b", "a"]) == 3 and blocks_needed(["a"]) == 1 and blocks_needed(["a", "a", "a"]) == 2
    )
    moe = CONFIG_MAPPING["deepseek_v3"]()  # three dense blocks, then experts
    assert shrunken(moe).num_hidden_layers == 4


def test_dropout_is_taken_out() -> None:
    config = CONFIG_MAPPING["seed_oss"]()
    assert config.attention_dropout > 0
    remove_noise(config)
    assert config.attention_dropout == 0 and config.residual_dropout == 0


def test_a_proof_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    config, linear = small("qwen2"), CONFIG_MAPPING["qwen3_next"]()
    assert remembered_proof(config).wrong is None
    with pytest.raises(UserError, match="^key: qwen3_next does not come out right here: the loss .*; do this$"):
        check_proof(linear, "key", "do this")
    monkeypatch.setattr(backbone_proof, "prove", None)  # would fail if it were asked again
    larger = small("qwen2")
    larger.vocab_size = 160_000
    assert remembered_proof(config).wrong is None and remembered_proof(larger).wrong is None
    with pytest.raises(UserError, match="qwen3_next does not come out right"):
        check_proof(linear, "key", "do this")
    assert proof_file(config) != proof_file(small("qwen2", num_hidden_layers=9))


def test_a_damaged_or_unwritable_cache_does_no_harm(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    config = small("llama")
    file = proof_file(config)
    file.parent.mkdir(parents=True)
    for damage in ("", "{}", "[1", '[5, "x"]'):
        file.write_text(damage)
        assert remembered_proof(config).wrong is None
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert remembered_proof(config).wrong is None


@pytest.mark.slow
def test_no_model_type_is_silently_wrong_or_a_traceback() -> None:
    """Every causal language model of the installed transformers: refused in one line, or proved."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as NAMES

    proved: list[str] = []
    refused: list[str] = []
    for name in NAMES:
        if name not in CONFIG_MAPPING:
            continue
        try:
            config = CONFIG_MAPPING[name]()
        except (ImportError, ValueError):
            continue  # no config of this type without fields of its own
        try:
            check_model(config, "backbone")
        except UserError as error:
            assert "\n" not in str(error)
            refused.append(name)
            continue
        (proved if prove(config).wrong is None else refused).append(name)
    assert len(proved) > 60 and len(refused) > 60 and set(TRAINED) <= set(proved) and set(REFUSED) <= set(refused)
