"""The fused step against transformers' own forward pass: every family, joined weights or not, and models it does not
know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from liquid_train.config.compose import load
from liquid_train.generate.compiled_decode import require_compiler
from liquid_train.generate.decoder import CachedDecoder, left_padded
from liquid_train.generate.fused_decode import FusedStep, Product, is_known, join_weights, joined
from liquid_train.generate.image_sampler import sample_images
from liquid_train.generate.int8 import Int8Linear, quantize
from liquid_train.generate.session import open_model
from tests.tiny_model import ARCHITECTURES, save, tiny

FAMILIES: dict[str, dict[str, Any]] = {
    **ARCHITECTURES,
    "llama": {"attention_bias": True, "mlp_bias": True},
    "gemma": {"num_key_value_heads": 1, "head_dim": 16},
}
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12, 13, 14], [15]]


def model_of(kind: str, **fields: Any) -> Any:
    config = AutoConfig.for_model(
        kind,
        vocab_size=99,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.25,
        max_position_embeddings=128,
        pad_token_id=0,
        **{"num_key_value_heads": 4, **fields},
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():  # norms and biases that say something
        if parameter.ndim == 1:
            parameter.normal_(0.0 if "gemma" in kind or name.endswith("bias") else 1.0, 0.2)
    return model


@torch.inference_mode()
def stepped(model: Any, steps: int = 30, compile: bool = False) -> torch.Tensor:
    """Logits [steps, rows, ids] of rows that go on with fixed ids, past Gemma-2's window."""
    ids, branch, position = left_padded(PROMPTS, 0, torch.device("cpu"), 8)
    decoder, found = CachedDecoder(model, 3, 8 + steps, 8 + steps, compile), []
    decoder.feed(ids, branch, position)
    for i in range(steps):
        hidden = decoder.step(torch.tensor([[20 + i], [50 + i], [30 + i]]), position[:, -1:] + 1 + i)
        found.append(decoder.logits(hidden, 0, 99))
    return torch.stack(found)


@pytest.mark.parametrize("kind", FAMILIES)
def test_logits_equal_transformers(kind: str) -> None:
    model = model_of(kind, **FAMILIES[kind])
    apart = stepped(model)
    join_weights(model)
    first = model.base_model.layers[0]
    assert len(Product([first.self_attn.q_proj, first.self_attn.k_proj, first.self_attn.v_proj]).parts) == 1
    together = stepped(model)
    for row, prompt in enumerate(PROMPTS):
        ids = [*prompt, *range((20, 50, 30)[row], (20, 50, 30)[row] + 30)]
        with torch.no_grad():
            expected = model(torch.tensor([ids])).logits[0, len(prompt) :]
        for found in (apart, together):
            torch.testing.assert_close(found[:, row], expected, atol=1e-4, rtol=0)


def test_other_models_take_the_general_path() -> None:
    assert is_known(model_of("qwen2"))
    adapted = model_of("qwen2")
    adapted.base_model.layers[1].mlp.down_proj = nn.Sequential(adapted.base_model.layers[1].mlp.down_proj)
    stretched = model_of("llama", rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0})
    for model in (adapted, stretched, model_of("qwen3")):
        assert not is_known(model)
        before = [p.clone() for p in model.parameters()]
        join_weights(model)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
        assert CachedDecoder(model, 1, 4, 4).fused is None
    torch.testing.assert_close(stepped(adapted), stepped(model_of("qwen2")), atol=1e-4, rtol=0)


def test_only_neighbours_are_joined() -> None:
    whole = torch.arange(24.0).view(6, 4)
    a, b, c = whole.split([1, 3, 2])
    whole_again = joined([a, b, c])
    assert whole_again is not None and whole_again.data_ptr() == whole.data_ptr() and torch.equal(whole_again, whole)
    assert joined([a, c]) is None and joined([b, a]) is None and joined([a, b.clone()]) is None


@pytest.mark.parametrize("kind", ["qwen2", "gemma2"])
def test_int8_weights_take_a_byte_and_stay_within_half_a_step(kind: str) -> None:
    model = model_of(kind, **FAMILIES[kind])
    exact = {name: m.weight.clone() for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    full = stepped(model)
    quantize(model)
    for name, m in model.named_modules():
        if isinstance(m, Int8Linear):
            assert m.weight.dtype == torch.int8 and m.weight.element_size() == 1
            error = (m.weight * m.scale[:, None] - exact[name]).abs()
            assert (error <= m.scale[:, None] * 0.5001).all() and m.weight.abs().amax() == 127
    assert sum(isinstance(m, Int8Linear) for m in model.modules()) == 14 and type(model.lm_head) is nn.Linear
    assert CachedDecoder(model, 1, 4, 4).fused is not None
    apart = stepped(model)
    join_weights(model)
    # as the general path, which the next lines take
    torch.testing.assert_close(stepped(model), apart, atol=1e-5, rtol=0)
    model.config.model_type, known = "other", model.config.model_type
    torch.testing.assert_close(apart, stepped(model), atol=1e-4, rtol=0)
    model.config.model_type = known
    assert 0 < (apart - full).abs().mean() < 0.1 * full.std()


@pytest.mark.parametrize("kind", ["qwen2", "gemma2"])
def test_steps_of_fixed_shape_equal_the_others(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # what would be compiled
    monkeypatch.setattr("liquid_train.generate.compiled_decode.compiled_call", lambda: FusedStep.__call__)
    model = model_of(kind, **FAMILIES[kind])
    torch.testing.assert_close(stepped(model, compile=True), stepped(model), atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["qwen2", "gemma2"])
def test_compiled_steps_equal_the_others(kind: str) -> None:
    model = model_of(kind, **FAMILIES[kind])
    torch.testing.assert_close(stepped(model, compile=True), stepped(model), atol=1e-4, rtol=0)


def test_compile_is_refused_where_it_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, vocabulary = tiny(tmp_path)
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "no-such-compiler"))
    with pytest.raises(ValueError, match=r"compile=true: no C\+\+ compiler.*g\+\+"):
        sample_images(model, vocabulary, ["a red"], seeds=[0], grid=(1, 2), compile=True)
    with pytest.raises(ValueError, match="compile=true: a model of type qwen3"):
        require_compiler(model_of("qwen3"))
    with pytest.raises(ValueError, match="compile=true: only .* task=t2i"):
        load("generate", ["checkpoint=x", "task=t2t", "prompt=a", "compile=true"])


def test_int8_folder_draws_the_same_in_every_batch(tmp_path: Path) -> None:
    session = open_model(save(tmp_path), "cpu", "int8")
    assert (
        sum(isinstance(m, Int8Linear) for m in session.model.modules()) == 14 and session.model.dtype == torch.bfloat16
    )
    prompts, options = ["a red circle", "a blue rectangle", "x"], dict[str, Any]({"grid": (2, 3), "guidance": 3.0})
    together = sample_images(session.model, session.vocabulary, prompts, seeds=[1, 2, 3], **options)
    for i, prompt in enumerate(prompts):
        assert (
            sample_images(session.model, session.vocabulary, [prompt], seeds=[i + 1], **options)[0] == together[i]
        ).all()
