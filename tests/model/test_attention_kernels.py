"""Kernels for packed rows against padded_sdpa: FlexAttention's forward for real, the CUDA kernels by stand-ins that
keep their contract."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from liquid_train.config.compose import load
from liquid_train.data.document_plan import DocumentPlan
from liquid_train.errors import UserError
from liquid_train.model import attention
from liquid_train.model.attention import choose_kernel

ROWS, LENGTHS = 2, [[3, 17, 1, 40, 9], [70]]
CPU = torch.device("cpu")
CASES = [(None, None), (None, 5), (3.0, None), (3.0, 5)]  # soft-cap, sliding window


def tensors(
    device: torch.device = CPU, dtype: torch.dtype = torch.float32, head_dim: int = 16
) -> tuple[torch.Tensor, ...]:
    random = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(ROWS, heads, 70, head_dim, generator=random).to(device, dtype).requires_grad_(device != CPU)
        for heads in (4, 2, 2)
    )


def plan_of_rows() -> DocumentPlan:
    return DocumentPlan.from_lengths([n for row in LENGTHS for n in row])


def attend(kernel: str, inputs: tuple[torch.Tensor, ...], softcap: float | None, window: int | None) -> torch.Tensor:
    q, k, v = inputs
    plan, module = plan_of_rows().to(q.device), torch.nn.Module()
    return attention.packed_attention(
        module, q, k, v, None, scaling=0.3, document_plan=plan, softcap=softcap, sliding_window=window, kernel=kernel
    )[0]


@pytest.mark.parametrize(("softcap", "window"), CASES)
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@torch.no_grad()
def test_flex_equals_padded_sdpa(softcap: float | None, window: int | None) -> None:
    ours, expected = (attend(kernel, tensors(), softcap, window) for kernel in ("flex", "padded_sdpa"))
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@torch.no_grad()
def test_sinks_are_a_further_score_without_a_value() -> None:
    """padded_sdpa and FlexAttention, against a softmax that is written out."""
    q, k, v = tensors()
    plan, module = plan_of_rows(), torch.nn.Module()
    sinks = torch.tensor([0.5, -1.0, 2.0, 0.0])
    found = [
        attention.packed_attention(
            module, q, k, v, None, scaling=0.3, document_plan=plan, sliding_window=3, s_aux=sinks, kernel=kernel
        )[0]
        for kernel in ("flex", "padded_sdpa")
    ]
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-5)
    first = int(plan.starts[1])  # the first document of the first row
    a, b, c = (t[0, :, :first].repeat_interleave(4 // t.shape[1], 0) for t in (q, k, v))
    back = torch.arange(first)[:, None] - torch.arange(first)[None]
    scores = (a @ b.transpose(1, 2) * 0.3).masked_fill((back < 0) | (back >= 3), float("-inf"))
    weights = scores.exp() / (scores.exp().sum(-1, keepdim=True) + sinks.exp().view(-1, 1, 1))
    torch.testing.assert_close(found[1][0, :first], (weights @ c).transpose(0, 1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kernel", ["flash", "varlen"])
def test_kernels_without_sinks_are_not_chosen(kernel: str) -> None:
    with pytest.raises(UserError, match=f"parallel.attention={kernel}: it has no attention sinks"):
        choose_kernel(kernel, CPU, torch.bfloat16, None, sinks=True)


def test_an_argument_that_would_change_attention_is_refused() -> None:
    q, k, v = tensors()
    plan, module = plan_of_rows(), torch.nn.Module()
    with pytest.raises(UserError, match="is asked for position_bias, which packed documents do not have here"):
        attention.packed_attention(module, q, k, v, None, document_plan=plan, position_bias=torch.ones(1))
    attention.packed_attention(module, q, k, v, None, document_plan=plan, position_bias=None)


def one_by_one(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    starts: torch.Tensor,
    scale: float,
    window_size: tuple[int, int],
    softcap: float = 0.0,
) -> torch.Tensor:
    """What flash-attn documents: [tokens, heads, head_dim], starts int32, window_size=(left, 0): causal, `left` tokens
    back, -1 for all."""
    assert starts.dtype == torch.int32 and starts[-1] == len(q) and window_size[1] == 0
    parts = []
    for first, end in zip(starts.tolist(), starts.tolist()[1:], strict=False):
        # [heads, n, head_dim]
        a, b, c = (t[first:end].transpose(0, 1).repeat_interleave(4 // t.shape[1], 0) for t in (q, k, v))
        scores = a @ b.transpose(1, 2) * scale
        scores = softcap * torch.tanh(scores / softcap) if softcap else scores
        back = torch.arange(end - first)[:, None] - torch.arange(end - first)[None]
        hidden = (back < 0) | ((back > window_size[0]) if window_size[0] >= 0 else False)
        parts.append((F.softmax(scores.masked_fill(hidden, float("-inf")), -1) @ c).transpose(0, 1))
    return torch.cat(parts)


@pytest.mark.parametrize(("softcap", "window"), CASES)
def test_flash_and_varlen_are_called_as_documented(
    monkeypatch: pytest.MonkeyPatch, softcap: float | None, window: int | None
) -> None:
    def varlen_attn(
        q: Any,
        k: Any,
        v: Any,
        starts: Any,
        starts_k: Any,
        most: int,
        most_k: int,
        *,
        scale: Any,
        window_size: Any,
        enable_gqa: bool,
    ) -> Any:
        assert starts is starts_k and most == most_k == 70 and enable_gqa
        return one_by_one(q, k, v, starts, scale, window_size)

    def flash_attn_varlen_func(
        q: Any,
        k: Any,
        v: Any,
        starts: Any,
        starts_k: Any,
        most: int,
        most_k: int,
        *,
        softmax_scale: Any,
        causal: bool,
        window_size: Any,
        softcap: float,
    ) -> Any:
        assert starts is starts_k and most == most_k == 70 and causal
        return one_by_one(q, k, v, starts, softmax_scale, window_size, softcap)

    package = ModuleType("flash_attn")
    monkeypatch.setattr(package, "flash_attn_varlen_func", flash_attn_varlen_func, raising=False)
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    for kernel in ("flash", "varlen") if softcap is None else ("flash",):
        torch.testing.assert_close(
            attend(kernel, tensors(), softcap, window),
            attend("padded_sdpa", tensors(), softcap, window),
            atol=1e-5,
            rtol=1e-5,
        )


def test_the_choice_follows_what_the_machine_can_do() -> None:
    assert (
        choose_kernel("auto", CPU, torch.bfloat16, None)
        == choose_kernel("padded_sdpa", CPU, torch.float32, 50.0)
        == "padded_sdpa"
    )
    for wish in ("flash", "varlen", "flex"):
        with pytest.raises(
            ValueError, match=rf"parallel.attention={wish}: it runs on CUDA.*possible here: auto, padded_sdpa"
        ):
            choose_kernel(wish, CPU, torch.bfloat16, None)


def test_older_configs_have_another_name_for_it() -> None:
    for name in ("padded_sdpa", "rectangles"):
        config = load("train", ["experiment=quickstart", f"parallel.attention={name}"])
        assert choose_kernel(config.parallel.attention, CPU, torch.float32, None) == "padded_sdpa"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("softcap", "window"), CASES)
@pytest.mark.parametrize("kernel", ["flash", "varlen", "flex"])
def test_on_a_gpu_outputs_and_gradients_equal_padded_sdpa(
    kernel: str, softcap: float | None, window: int | None
) -> None:
    device = torch.device("cuda")
    try:
        choose_kernel(kernel, device, torch.bfloat16, softcap)
    except ValueError as error:
        pytest.skip(str(error))
    found = []
    for name, dtype in ((kernel, torch.bfloat16), ("padded_sdpa", torch.float32)):
        inputs = tensors(device, dtype, head_dim=64)
        out = attend(name, inputs, softcap, window)
        out.float().square().mean().backward()
        found.append([out.float(), *(t.grad.float() for t in inputs if t.grad is not None)])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, atol=2e-2, rtol=2e-2)
