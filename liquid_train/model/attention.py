"""Attention inside packed documents: a document never sees another, by construction.

Where no kernel for packed rows runs (ragged_attention.py has those), the documents of a micro-batch are gathered out of
the flat row of tokens into a few rectangles of about equal length (`DocumentPlan`), attended causally there, and put
back. A document's padding stands after it, where no causal query looks, so no mask is needed and the work is that of
the documents, not of the square of the sequence. Each way is registered with transformers' AttentionInterface under a
name of its own; the plan reaches it as a keyword of the model's forward, never inferred from positions.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from liquid_train.errors import UserError
from liquid_train.model import attention_kernels as ragged_attention

PACKED = "liquid_packed"
STEPS_PER_DOUBLING = 4  # rectangle lengths: at most a quarter of a document's length is padding


@dataclass(frozen=True)
class DocumentPlan:
    """Where the documents of a flat row of N tokens lie.

    gather[b]: token numbers [documents, length] of rectangle b (padding repeats a document's last token).
    restore: [N], each token's place in the rectangles laid out flat, one after the other.
    starts: int32 [documents + 1], the first token of each document, and N. longest: tokens of the longest one.
    masks: what a kernel made of the plan, by sliding window, for the other layers.
    """

    gather: tuple[Tensor, ...]
    restore: Tensor
    starts: Tensor
    longest: int
    masks: dict[int | None, Any] = field(default_factory=dict, compare=False)

    @classmethod
    def from_lengths(cls, lengths: list[int]) -> DocumentPlan:
        """Plan for documents that lie one after the other with these lengths."""
        groups: dict[int, list[tuple[int, int]]] = defaultdict(list)
        start = 0
        for length in lengths:
            groups[rectangle_length(length)].append((start, length))
            start += length
        restore = torch.empty(start, dtype=torch.int64)
        gather, base = [], 0
        for width, documents in sorted(groups.items()):
            starts = torch.tensor([s for s, _ in documents]).unsqueeze(1)  # [documents, 1]
            counts = torch.tensor([n for _, n in documents]).unsqueeze(1)
            column = torch.arange(width).unsqueeze(0)  # [1, width]
            tokens = starts + torch.minimum(column, counts - 1)
            real = column < counts
            places = torch.arange(tokens.numel()).view_as(tokens) + base
            restore[tokens[real]] = places[real]
            gather.append(tokens)
            base += tokens.numel()
        ends = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
        return cls(tuple(gather), restore, ends, max(lengths))

    def to(self, device: torch.device) -> DocumentPlan:
        gather = tuple(g.to(device, non_blocking=True) for g in self.gather)
        restore, starts = self.restore.to(device, non_blocking=True), self.starts.to(device, non_blocking=True)
        return DocumentPlan(gather, restore, starts, self.longest)


def rectangle_length(length: int) -> int:
    """The next of 8, 16, 24, 32, then four steps a doubling: 40, 48, 56, 64, 80, 96, ..."""
    step = max(8, 1 << max(0, (length - 1).bit_length() - 1 - (STEPS_PER_DOUBLING.bit_length() - 1)))
    return -(-length // step) * step


# the documents' lengths differ in every batch: a compiled block would be compiled again for each
@torch.compiler.disable
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
    kernel: str = "rectangles",
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """query [n, heads, seq_len, head_dim], key and value [n, kv_heads, seq_len, head_dim] -> [n, seq_len, heads,
    head_dim].

    Raises ValueError without a plan: attention across documents must never happen silently.
    """
    if document_plan is None:
        raise ValueError(
            f"attention {PACKED!r} needs document_plan=; load the model with another attn_implementation for inference"
        )
    attend = KERNELS[kernel]
    return attend(query, key, value, document_plan, scaling=scaling, softcap=softcap, window=sliding_window), None


def rectangles(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    document_plan: DocumentPlan,
    *,
    scaling: float | None,
    softcap: float | None,
    window: int | None,
) -> Tensor:
    """Shapes as in packed_attention."""
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
        out = _attend(q, k, v, scaling, softcap, window)  # [documents, heads, width, head_dim]
        parts.append(out.transpose(1, 2).reshape(documents * width, out.shape[1], out.shape[3]))
    out = torch.cat(parts).index_select(0, document_plan.restore)
    return out.view(n, seq_len, out.shape[1], out.shape[2])


def implementation(kernel: str) -> str:
    """The attn_implementation of transformers under which a kernel is registered."""
    return PACKED if kernel == "rectangles" else f"{PACKED}_{kernel}"


def choose_kernel(wish: str, device: torch.device, dtype: torch.dtype, softcap: float | None) -> str:
    """The kernel for a device, compute dtype and model: `wish`, or where that is auto the first of flash, varlen and
    flex that runs.

    Raises UserError with the reason where the wish cannot be met.
    """
    reasons = {kernel: why_not(device, dtype, softcap) for kernel, why_not in ragged_attention.WHY_NOT.items()} | {
        "rectangles": None
    }
    if wish == "auto":
        return next(kernel for kernel, reason in reasons.items() if reason is None)
    if reasons[wish] is not None:
        possible = [kernel for kernel, reason in reasons.items() if reason is None]
        raise UserError(f"parallel.attention={wish}: {reasons[wish]}; possible here: auto, {', '.join(possible)}")
    return wish


def describe(kernel: str, softcap: float | None) -> str:
    """How attention is computed, for the log."""
    if kernel != "rectangles":
        return f"attention within documents: {ragged_attention.NAMES[kernel]}"
    how = (
        "torch's fused scaled_dot_product_attention"
        if softcap is None
        else f"plain products: no fused kernel here has soft-capping at {softcap:g}"
    )
    return f"attention within documents, gathered into rectangles, by {how}"


def _attend(
    q: Tensor, k: Tensor, v: Tensor, scaling: float | None, softcap: float | None, window: int | None
) -> Tensor:
    """Causal attention of equal-length documents, with Gemma-2's soft-capping and sliding window where the model has
    them."""
    width = q.shape[2]
    windowed = window is not None and window < width
    if softcap is None:
        mask = _band(width, window, q.device) if windowed else None
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
        )
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = q @ k.transpose(2, 3) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~_band(width, window if windowed else None, q.device), float("-inf"))
    return scores.float().softmax(-1).to(v.dtype) @ v


def _band(width: int, window: int | None, device: torch.device) -> Tensor:
    """[width, width] bool: query i may see key j."""
    mask = torch.ones(width, width, dtype=torch.bool, device=device).tril()
    return mask if window is None else mask.triu(1 - window)


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """The documents' borders are in the plan; transformers need not build a mask."""


KERNELS = {"rectangles": rectangles, **ragged_attention.KERNELS}
for _kernel in KERNELS:
    AttentionInterface.register(implementation(_kernel), partial(packed_attention, kernel=_kernel))
    AttentionMaskInterface.register(implementation(_kernel), _no_mask)
