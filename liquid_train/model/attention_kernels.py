"""Kernels that attend within the documents of packed rows in place, for CUDA: nothing is gathered or padded.

    flash   flash-attn's variable-length kernel: sliding windows and soft-capping
    varlen  torch's own variable-length kernel: sliding windows, no soft-capping
    flex    torch's FlexAttention, compiled: for soft-capping where flash-attn is not installed

All have query [n, heads, seq_len, head_dim], key and value [n, kv_heads, seq_len, head_dim] -> [n, seq_len, heads,
head_dim]. A sliding window of w lets a token see itself and the w - 1 before it.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from liquid_train.data.document_plan import DocumentPlan

NAMES = {
    "flash": "flash-attn's variable-length kernel",
    "varlen": "torch's variable-length kernel",
    "flex": "torch's FlexAttention, compiled",
}
OLDEST = (8, 0)  # compute capability of the first GPUs (Ampere) with kernels of both flash-attn and torch


def flash(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: DocumentPlan,
    *,
    scaling: float | None,
    softcap: float | None,
    window: int | None,
    sinks: Tensor | None,
) -> Tensor:
    from flash_attn import flash_attn_varlen_func

    assert sinks is None
    out = flash_attn_varlen_func(
        *_flat(q, k, v),
        plan.starts,
        plan.starts,
        plan.longest,
        plan.longest,
        softmax_scale=scaling,
        causal=True,
        window_size=(-1 if window is None else window - 1, 0),
        softcap=softcap or 0.0,
    )
    attended: Tensor = out.view(q.shape[0], q.shape[2], q.shape[1], q.shape[3])
    return attended


def varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: DocumentPlan,
    *,
    scaling: float | None,
    softcap: float | None,
    window: int | None,
    sinks: Tensor | None,
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    assert softcap is None and sinks is None
    out: Any = varlen_attn(
        *_flat(q, k, v),
        plan.starts,
        plan.starts,
        plan.longest,
        plan.longest,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=q.shape[1] != k.shape[1],
    )
    attended: Tensor = out.view(q.shape[0], q.shape[2], q.shape[1], q.shape[3])
    return attended


# compiled by itself, with a mask that is made at its first call
@torch.compiler.disable  # type: ignore[untyped-decorator]
def flex(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: DocumentPlan,
    *,
    scaling: float | None,
    softcap: float | None,
    window: int | None,
    sinks: Tensor | None,
) -> Tensor:
    from torch.nn.attention.flex_attention import AuxRequest

    if window not in plan.masks:  # the same for all layers with this window
        plan.masks[window] = _block_mask(plan, q.shape[0], q.shape[2], window)
    attend = _compiled_flex() if q.is_cuda else _flex()  # uncompiled it holds all scores: for tests
    capped = None if softcap is None else lambda score, *_: softcap * torch.tanh(score / softcap)
    options = {"score_mod": capped, "block_mask": plan.masks[window], "scale": scaling}
    attend = functools.partial(attend, q, k, v, enable_gqa=q.shape[1] != k.shape[1], **options)
    if sinks is None:
        out = attend()
    else:  # a further score s in the softmax scales all shares by Z / (Z + exp(s))
        out, aux = attend(return_aux=AuxRequest(lse=True))
        out = out * torch.sigmoid(aux.lse - sinks.view(1, -1, 1)).unsqueeze(-1).to(out.dtype)
    attended: Tensor = out.transpose(1, 2)
    return attended


def _flat(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[n, heads, seq_len, head_dim] each -> [n * seq_len, heads, head_dim]: rows one after the other, as the plan
    counts them."""
    flat = [t.transpose(1, 2).reshape(-1, t.shape[1], t.shape[3]) for t in (q, k, v)]
    return flat[0], flat[1], flat[2]


def _block_mask(plan: DocumentPlan, rows: int, seq_len: int, window: int | None) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    tokens = torch.arange(rows * seq_len, device=plan.starts.device)
    document = torch.bucketize(tokens, plan.starts[1:], right=True).view(rows, seq_len)

    def visible(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = (document[row, query] == document[row, key]) & (query >= key)
        return seen if window is None else seen & (query - key < window)

    return create_block_mask(visible, B=rows, H=None, Q_LEN=seq_len, KV_LEN=seq_len, device=str(plan.starts.device))


def _flex() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention


@functools.cache
def _compiled_flex() -> Callable[..., Any]:
    return torch.compile(_flex())


def _no_gpu_for_it(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cuda":
        return f"it runs on CUDA, not on {device.type}"
    if torch.cuda.get_device_capability(device) < OLDEST:
        return (
            f"it needs a GPU of compute capability {OLDEST[0]}.{OLDEST[1]} or above, this is "
            f"{torch.cuda.get_device_name(device)}"
        )
    return "it computes in bf16; parallel.precision is fp32" if dtype == torch.float32 else None


def _why_not_flash(device: torch.device, dtype: torch.dtype, softcap: float | None) -> str | None:
    missing = importlib.util.find_spec("flash_attn") is None
    return _no_gpu_for_it(device, dtype) or (
        "flash-attn is not installed (pip install flash-attn)" if missing else None
    )


def _why_not_varlen(device: torch.device, dtype: torch.dtype, softcap: float | None) -> str | None:
    if reason := _no_gpu_for_it(device, dtype):
        return reason
    from torch.nn.attention.varlen import varlen_attn

    if not {"enable_gqa", "window_size"} <= set(inspect.signature(varlen_attn).parameters):
        return f"that of torch {torch.__version__} has no grouped queries or no sliding window"
    return f"it has no soft-capping, and this model caps at {softcap:g}" if softcap is not None else None


def _why_not_flex(device: torch.device, dtype: torch.dtype, softcap: float | None) -> str | None:
    return "it runs on CUDA; on a CPU it has no backward" if device.type != "cuda" else None


ONE_GRAPH = ("flash", "varlen")  # torch.compile goes through them
WITHOUT_SINKS = ("flash", "varlen")
KERNELS = {"flash": flash, "varlen": varlen, "flex": flex}
# Why a kernel cannot be used with (device, compute dtype, soft-cap), or None; the first that can is the choice.
WHY_NOT: dict[str, Callable[[torch.device, torch.dtype, float | None], str | None]] = {
    "flash": _why_not_flash,
    "varlen": _why_not_varlen,
    "flex": _why_not_flex,
}
