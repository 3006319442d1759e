"""Families of language models: which one a model is of, and what it says."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from liquid_train.errors import UserError
from liquid_train.model import families
from liquid_train.model.backbone import fill_random, model_config
from liquid_train.model.families import FAMILIES, Family, family_of, find_family, special_token_triples, use_family
from liquid_train.model.settings import BackboneConfig
from liquid_train.vocabulary import IMAGE_TOKENS, add_image_tokens
from tests.tiny_model import ARCHITECTURES

HERE = __name__
SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


class Own(Family):
    special_tokens = (("<a>", "<b>", "<c>"),)
    fused_decode = True


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "_chosen", {})


@pytest.mark.parametrize("name", [*FAMILIES.names(), "qwen3", "gemma3_text"])
def test_norms_start_where_transformers_lets_them_start(name: str) -> None:
    config = AutoConfig.for_model(name, **SIZES | {"num_key_value_heads": 2} | ARCHITECTURES.get(name, {}))
    model = AutoModelForCausalLM.from_config(config)
    expected = {n: p.detach().clone() for n, p in model.named_parameters() if "norm" in n}
    fill_random(model, 0)
    assert expected and all(torch.equal(p, expected[n]) for n, p in model.named_parameters() if n in expected)


def test_soft_capping_is_what_the_config_says() -> None:
    gemma2 = AutoConfig.for_model("gemma2", attn_logit_softcapping=5.0, final_logit_softcapping=None)
    assert family_of("gemma2").attention_softcap(gemma2) == 5.0 and family_of("gemma2").logit_softcap(gemma2) is None
    plain: Any = SimpleNamespace()
    assert family_of("anything").attention_softcap(plain) is family_of("anything").logit_softcap(plain) is None


def test_the_general_path_takes_no_shortcut() -> None:
    general = family_of("anything")
    assert type(general) is Family and not general.fused_decode and not general.special_tokens


def test_a_family_of_ones_own_goes_before_all_others() -> None:
    own = find_family(f"{HERE}.Own", "backbone.family")
    use_family("qwen2", own)
    assert isinstance(family_of("qwen2"), Own) and not isinstance(family_of("llama"), Own)
    triples = special_token_triples(family_of("qwen2"))
    assert triples[0] == ("<a>", "<b>", "<c>") and ("<unused0>", "<unused1>", "<unused2>") in triples[1:]


def test_backbone_family_is_used_from_where_the_config_is_read() -> None:
    backbone = BackboneConfig(architecture={"model_type": "qwen2", **SIZES}, family=f"{HERE}.Own")
    model_config(backbone, 64)
    assert isinstance(family_of("qwen2"), Own)


@pytest.mark.parametrize(
    ("model_type", "entries", "taken"),
    [
        ("qwen3", ["<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>"], slice(0, 3)),
        ("gemma3_text", ["<start_of_image>", "<unused0>", "<unused1>", "<unused2>"], slice(1, 4)),
        (
            "smollm3",  # its <think> and </think> are Llama 3's first two reserved entries
            ["<think>", "</think>", *(f"<|reserved_special_token_{i}|>" for i in range(2, 104))],
            slice(100, 103),
        ),
        ("olmo2", [f"<|extra_id_{i}|>" for i in range(5)], slice(1, 4)),
        ("granite", ["<gh_stars>", "<issue_start>", "<issue_comment>", "<issue_closed>"], slice(1, 4)),
    ],
)
def test_unused_entries_of_the_modern_tokenizers(
    model_type: str, entries: list[str], taken: slice, tmp_path: Path
) -> None:
    words = Tokenizer(models.WordLevel({"a": 0, "</s>": 1}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", extra_special_tokens=entries).save_pretrained(
        tmp_path / "from"
    )
    extended = add_image_tokens(tmp_path / "from", tmp_path / "to", None, family_of(model_type))
    assert extended.convert_tokens_to_ids(list(IMAGE_TOKENS)) == list(range(2, 2 + len(entries)))[taken]
    kept = [e for e in entries if e not in entries[taken]]
    assert set(kept) <= set(extended.get_vocab())


def test_what_is_no_family_is_refused() -> None:
    with pytest.raises(UserError, match="backbone.family=gpt: no such backbone family; one of .*gemma2.*llama"):
        find_family("gpt", "backbone.family")
    with pytest.raises(UserError, match="backbone.family=pathlib.Path: not a subclass"):
        find_family("pathlib.Path", "backbone.family")
