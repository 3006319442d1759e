"""Packed equals separate for each family, and the chunked head equals the plain one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from liquid_train.data.document_plan import DocumentPlan
from liquid_train.model.attention import PACKED
from liquid_train.model.loss import ChunkedCrossEntropy, HeadOptions

FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "llama": {},
    "gemma": {"head_dim": 8},
    "gemma2": {
        "head_dim": 8,
        "sliding_window": 5,
        "attn_logit_softcapping": 3.0,
        "final_logit_softcapping": 4.0,
        "query_pre_attn_scalar": 8,
    },
}
LENGTHS = [3, 17, 1, 40, 9]


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_equals_separate(family: str) -> None:
    """Loss and gradients of a packed row against the same documents one by one through eager attention."""
    torch.manual_seed(0)
    fields = dict(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
    )
    config = AutoConfig.for_model(family, **fields, **FAMILIES[family], pad_token_id=0)
    packed = AutoModelForCausalLM.from_config(config, attn_implementation=PACKED)
    separate = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    separate.load_state_dict(packed.state_dict())
    documents = [torch.randint(0, 50, (1, n)) for n in LENGTHS]
    positions = torch.cat([torch.arange(n) for n in LENGTHS])[None]
    plan = DocumentPlan.from_lengths(LENGTHS)
    together = packed(
        input_ids=torch.cat(documents, 1), position_ids=positions, use_cache=False, document_plan=plan
    ).logits
    apart = torch.cat([separate(input_ids=d, use_cache=False).logits for d in documents], 1)
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)
    together.square().mean().backward()
    apart.square().mean().backward()
    for (name, p), q in zip(packed.named_parameters(), separate.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, atol=1e-5, rtol=1e-4, msg=name)


def test_without_a_plan_it_refuses() -> None:
    small = dict(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    config = AutoConfig.for_model("qwen2", **small)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=PACKED)
    with pytest.raises(ValueError, match="document_plan"):
        model(input_ids=torch.zeros(1, 4, dtype=torch.long), use_cache=False)


def plain(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    weights: torch.Tensor,
    o: HeadOptions,
    bias: torch.Tensor,
) -> torch.Tensor:
    logits = (hidden @ weight[: o.vocabulary].t() + bias[: o.vocabulary]) * o.scale
    if o.softcap:
        logits = o.softcap * torch.tanh(logits / o.softcap)
    loss = F.cross_entropy(logits, targets, reduction="none") + o.z_loss * logits.logsumexp(1).square()
    return (loss * weights).sum()


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
@pytest.mark.parametrize(
    ("softcap", "z_loss", "scale"), [(None, 0.0, 1.0), (2.0, 0.0, 0.3), (None, 0.1, 1.0), (2, 0.1, 2.0)]
)
def test_chunked_equals_plain(chunk: int, softcap: float | None, z_loss: float, scale: float) -> None:
    torch.manual_seed(1)
    options = HeadOptions(vocabulary=30, chunk=chunk, softcap=softcap, scale=scale, z_loss=z_loss)
    hidden, weight = (
        torch.randn(64, 16, dtype=torch.float64, requires_grad=True),
        torch.randn(40, 16, dtype=torch.float64, requires_grad=True),
    )
    targets, weights = torch.randint(0, 30, (64,)), torch.rand(64)
    weights[:5] = 0.0
    bias = torch.randn(40, dtype=torch.float64, requires_grad=True)
    total, losses, correct = ChunkedCrossEntropy.apply(hidden, weight, targets, weights, options, True, bias)
    expected = plain(hidden, weight, targets, weights, options, bias)
    torch.testing.assert_close(total.double(), expected, atol=1e-4, rtol=1e-5)
    got = torch.autograd.grad(total * 3, (hidden, weight, bias))
    want = torch.autograd.grad(expected * 3, (hidden, weight, bias))
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, atol=1e-5, rtol=1e-4)
    logits = (hidden @ weight[:30].t() + bias[:30]).detach()
    assert np.array_equal(correct.numpy(), (logits.argmax(1) == targets).numpy())
    assert not got[1][30:].any(), "rows beyond the vocabulary never win and never learn"


def test_no_targets_at_all() -> None:
    hidden, weight = torch.randn(0, 8, requires_grad=True), torch.randn(10, 8, requires_grad=True)
    total, _, _ = ChunkedCrossEntropy.apply(
        hidden, weight, torch.zeros(0, dtype=torch.long), torch.zeros(0), HeadOptions(10), True
    )
    total.backward()
    assert total.item() == 0 and weight.grad is not None and not weight.grad.any()
