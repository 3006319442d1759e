"""Attention of a few new tokens to a long cache, for every family: query heads that share keys are rows of one product.

transformers repeats keys and values for each query head before it attends, which copies the whole cache at every step.
Here the query heads of one key head stand as further queries next to each other, so the cache is read as it lies.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

GROUPED = "liquid_grouped"


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """query [rows, heads, new, head_dim], key and value [rows, kv_heads, length, head_dim] -> [rows, new, heads,
    head_dim of the values].

    attention_mask: additive [rows, 1, new, length]; it says all that is causal or slides. softcap: Gemma-2's, on the
    scores. s_aux [heads]: GPT-OSS's sinks, each a further score of its head that has no value.
    """
    rows, heads, new, width = query.shape
    kv_heads = key.shape[1]
    groups = heads // kv_heads
    grouped = query.reshape(rows, kv_heads, groups * new, width)
    mask = attention_mask if new == 1 else attention_mask.repeat(1, 1, groups, 1)
    if softcap is None and s_aux is None and new > 1:
        out = F.scaled_dot_product_attention(grouped, key, value, attn_mask=mask, scale=scaling)
    else:  # one token: plain products are as fast as torch's fused kernel on a CPU, in bf16 two to three times faster
        scores = grouped @ key.transpose(2, 3) * (width**-0.5 if scaling is None else scaling)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        scores = scores + mask
        if s_aux is not None:
            sinks = s_aux.to(scores.dtype).view(1, kv_heads, groups, 1).expand(rows, -1, -1, new)
            scores = torch.cat([scores, sinks.reshape(rows, kv_heads, groups * new, 1)], -1)
        shares = torch.softmax(scores, -1, dtype=torch.float32)[..., : key.shape[2]]
        out = shares.to(value.dtype) @ value
    return out.reshape(rows, heads, new, value.shape[3]).transpose(1, 2), None


def _mask_is_given(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("the decoder hands every layer its mask")


AttentionInterface.register(GROUPED, grouped_attention)
AttentionMaskInterface.register(GROUPED, _mask_is_given)
