"""Attention inside packed documents: a document never sees another, by construction.

Where none of the kernels for packed rows runs (attention_kernels.py), `padded_sdpa` does: it gathers the documents of a
micro-batch out of the flat row of tokens into a few padded batches of about equal length (`DocumentPlan`), attends
causally there, and puts the results back. The padding comes after a document, where no causal query looks, so no mask
is needed, and the work grows with the documents' lengths, not with the square of the sequence's. Each kernel is
registered with transformers' AttentionInterface under its own name. The plan reaches it as a keyword argument of the
model's forward and is never inferred from positions.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from liquid_train.data.document_plan import DocumentPlan
from liquid_train.errors import UserError
from liquid_train.model import attention_kernels

PACKED = "liquid_packed"
PADDED_SDPA = "padded_sdpa"
# Keyword arguments of attention that models hand on and that change nothing here.
WITHOUT_EFFECT = {"position_ids", "use_cache", "cache_position", "output_attentions", "is_causal"}


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    document_plan: DocumentPlan | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    s_aux: Tensor | None = None,
    kernel: str = PADDED_SDPA,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """query [n, heads, seq_len, head_dim], key and value [n, kv_heads, seq_len, head_dim] -> [n, seq_len, heads,
    head_dim]. s_aux [heads]: GPT-OSS's sinks, each a further score of its head that has no value.

    Raises ValueError without a plan: attention across documents must never happen silently. UserError for an argument
    that would change the result and is not known here.
    """
    if unknown := sorted(name for name, value in kwargs.items() if name not in WITHOUT_EFFECT and value is not None):
        raise UserError(
            f"backbone: attention of {type(module).__name__} is asked for {', '.join(unknown)}, which packed documents "
            "do not have here; choose another backbone"
        )
    if document_plan is None:
        raise ValueError(
            f"attention {PACKED!r} needs document_plan=; load the model with another attn_implementation for inference"
        )
    attend = KERNELS[kernel]
    options: dict[str, Any] = {"scaling": scaling, "softcap": softcap, "window": sliding_window, "sinks": s_aux}
    return attend(query, key, value, document_plan, **options), None


# document lengths differ in every batch: a compiled block would be compiled again for each
@torch.compiler.disable  # type: ignore[untyped-decorator]
def padded_sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    document_plan: DocumentPlan,
    *,
    scaling: float | None,
    softcap: float | None,
    window: int | None,
    sinks: Tensor | None,
) -> Tensor:
    """Gather the documents into padded batches, attend causally there, and put the results back. Shapes as in
    packed_attention."""
    n, _, seq_len, _ = query.shape
    # [N, heads, head_dim]
    flat = [t.transpose(1, 2).reshape(n * seq_len, t.shape[1], t.shape[3]) for t in (query, key, value)]
    parts = []
    for tokens in document_plan.gather:
        documents, width = tokens.shape
        q, k, v = (
            t.index_select(0, tokens.reshape(-1)).view(documents, width, t.shape[1], t.shape[2]).transpose(1, 2)
            for t in flat
        )
        out = _attend(q, k, v, scaling, softcap, window, sinks)  # [documents, heads, width, head_dim]
        parts.append(out.transpose(1, 2).reshape(documents * width, out.shape[1], out.shape[3]))
    out = torch.cat(parts).index_select(0, document_plan.restore)
    return out.view(n, seq_len, out.shape[1], out.shape[2])


def implementation(kernel: str) -> str:
    """The name under which a kernel is registered with transformers, for attn_implementation."""
    return PACKED if kernel == PADDED_SDPA else f"{PACKED}_{kernel}"


def choose_kernel(
    wish: str, device: torch.device, dtype: torch.dtype, softcap: float | None, sinks: bool = False
) -> str:
    """The kernel for a device, compute dtype and model: `wish`, or for auto the first of flash, varlen, flex and
    padded_sdpa that runs. sinks: whether the model's attention has some.

    Raises UserError with the reason where `wish` does not run.
    """
    reasons = {kernel: why_not(device, dtype, softcap) for kernel, why_not in attention_kernels.WHY_NOT.items()} | {
        PADDED_SDPA: None
    }
    if sinks:
        reasons |= {kernel: "it has no attention sinks" for kernel in attention_kernels.WITHOUT_SINKS}
    if wish == "auto":
        return next(kernel for kernel, reason in reasons.items() if reason is None)
    if reasons[wish] is not None:
        possible = [kernel for kernel, reason in reasons.items() if reason is None]
        raise UserError(f"parallel.attention={wish}: {reasons[wish]}; possible here: auto, {', '.join(possible)}")
    return wish


def describe(kernel: str, softcap: float | None) -> str:
    """How attention is computed, for the log."""
    if kernel != PADDED_SDPA:
        return f"attention within documents: {attention_kernels.NAMES[kernel]}"
    how = (
        "torch's fused scaled_dot_product_attention"
        if softcap is None
        else f"plain products: no fused kernel here has soft-capping at {softcap:g}"
    )
    return f"attention within documents, gathered into padded batches, by {how}"


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scaling: float | None,
    softcap: float | None,
    window: int | None,
    sinks: Tensor | None,
) -> Tensor:
    """Causal attention of equal-length documents, with Gemma-2's soft-capping, GPT-OSS's sinks and a sliding window
    where the model has them."""
    width = q.shape[2]
    windowed = window is not None and window < width
    if softcap is None and sinks is None:
        mask = _band(width, window, q.device) if windowed else None
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
        )
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = q @ k.transpose(2, 3) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~_band(width, window if windowed else None, q.device), float("-inf")).float()
    if sinks is not None:
        scores = torch.cat([scores, sinks.float().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)], -1)
    return scores.softmax(-1)[..., :width].to(v.dtype) @ v


def _band(width: int, window: int | None, device: torch.device) -> Tensor:
    """[width, width] bool: query i may see key j."""
    mask = torch.ones(width, width, dtype=torch.bool, device=device).tril()
    return mask if window is None else mask.triu(1 - window)


KERNELS = {PADDED_SDPA: padded_sdpa, **attention_kernels.KERNELS}
# No mask is registered with it: the borders of the documents are in the plan, and transformers, which would ask the
# device in every forward whether a row is packed, leaves that out for a kernel that has none.
for _kernel in KERNELS:
    AttentionInterface.register(implementation(_kernel), partial(packed_attention, kernel=_kernel))
