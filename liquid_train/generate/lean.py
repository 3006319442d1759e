"""One token a row through a decoder, without the calls around the arithmetic: the step that drawing repeats a thousand times.

In a small model the modules of transformers, their keyword arguments and a dozen small operations for each norm and rotation cost as
much as the products. Here a step is a flat list of products over the same weights. It knows the families of FAMILIES, whatever
their sizes; other models, and modules that were exchanged (adapters), take transformers' own forward pass (decoder.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

FAMILIES = ("qwen2", "llama", "gemma", "gemma2")
FIXED_ROTATIONS = ("default", "linear", "llama3", "yarn")  # the others change their frequencies with the length
JOINED = (("self_attn", ("q_proj", "k_proj", "v_proj")), ("mlp", ("gate_proj", "up_proj")))  # products of the same input
PROJECTIONS = (*JOINED, ("self_attn", ("o_proj",)), ("mlp", ("down_proj",)))


def is_known(model: PreTrainedModel) -> bool:
    """Whether LeanStep computes what the model's own forward pass does."""
    config, body = model.config, model.base_model
    if config.model_type not in FAMILIES or (getattr(config, "rope_parameters", None) or {}).get("rope_type") not in FIXED_ROTATIONS:
        return False
    return all(type(m) is nn.Linear for layer in body.layers for part, names in PROJECTIONS for m in modules(layer, part, names))


def modules(layer: nn.Module, part: str, names: Sequence[str]) -> list[Any]:
    return [getattr(getattr(layer, part), name) for name in names]


@torch.no_grad()
def join_weights(model: PreTrainedModel) -> None:
    """Lay the weights that multiply the same input beside each other in memory, so that LeanStep takes one product for them.

    The model stays what it was; at any time one group of weights exists twice.
    """
    for layer in model.base_model.layers if is_known(model) else ():
        for part, names in JOINED:
            linears = modules(layer, part, names)
            for kind in ("weight", "bias"):
                tensors = [getattr(linear, kind) for linear in linears]
                if tensors[0] is not None:
                    for tensor, piece in zip(tensors, torch.cat(tensors).split([len(t) for t in tensors]), strict=True):
                        tensor.data = piece


def joined(tensors: Sequence[Tensor]) -> Tensor | None:
    """The one tensor of which these are the consecutive rows, or None where they lie elsewhere; without a copy."""
    first, end = tensors[0], tensors[0].data_ptr()
    for tensor in tensors:
        if tensor.data_ptr() != end or not tensor.is_contiguous() or tensor.untyped_storage().data_ptr() != first.untyped_storage().data_ptr():
            return None
        end += tensor.numel() * tensor.element_size()
    return first.detach().as_strided((sum(map(len, tensors)), *first.shape[1:]), first.stride())


class Product:
    """The products of one input with some linear modules, beside each other: [rows, inputs] -> [rows, sum of outputs]."""

    def __init__(self, linears: Sequence[nn.Linear]) -> None:
        weight = joined([linear.weight for linear in linears])
        bias = None if linears[0].bias is None else joined([linear.bias for linear in linears])
        whole = weight is not None and (bias is None) == (linears[0].bias is None)
        self.parts = [(weight, bias)] if whole else [(linear.weight, linear.bias) for linear in linears]

    def __call__(self, x: Tensor) -> Tensor:
        found = [F.linear(x, weight, bias) for weight, bias in self.parts]
        return found[0] if len(found) == 1 else torch.cat(found, -1)


class Norm:
    """RMSNorm; Gemma's multiplies by 1 + weight, in fp32."""

    def __init__(self, module: Any, gemma: bool) -> None:
        self.weight = 1 + module.weight.detach().float() if gemma else module.weight
        self.eps = module.eps if gemma else module.variance_epsilon

    def __call__(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.to(self.weight.dtype), self.weight.shape, self.weight, self.eps).to(x.dtype)


class Layer:
    """The weights of one layer and its step."""

    def __init__(self, module: Any, gemma: bool, sandwich: bool) -> None:
        attention = module.self_attn
        self.qkv, self.gate_up, self.o, self.down = (Product(modules(module, part, names)) for part, names in PROJECTIONS)
        self.before_attention, after = Norm(module.input_layernorm, gemma), Norm(module.post_attention_layernorm, gemma)
        self.after_attention = after if sandwich else None  # Gemma-2 has norms behind attention and MLP as well
        self.before_mlp = Norm(module.pre_feedforward_layernorm, gemma) if sandwich else after
        self.after_mlp = Norm(module.post_feedforward_layernorm, gemma) if sandwich else None
        self.activation = module.mlp.act_fn
        self.head_dim, self.scale = attention.head_dim, attention.scaling
        self.softcap = getattr(attention, "attn_logit_softcapping", None)
        self.slides = getattr(attention, "sliding_window", None) is not None

    def __call__(self, hidden: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, start: int, mask: Tensor) -> Tensor:
        """hidden [rows, width] -> the same behind the layer; keys and values [rows, kv_heads, capacity, head_dim] get column `start`.

        cos, sin: [rows, 1, 2, head_dim / 2], sin of the first half negated. mask: additive [rows * kv_heads, 1, start + 1].
        """
        rows, kv_heads = keys.shape[:2]
        found = self.qkv(self.before_attention(hidden)).view(rows, -1, 2, self.head_dim // 2)
        turning, value = found[:, :-kv_heads], found[:, -kv_heads:]
        turned = torch.addcmul(turning * cos, turning.flip(2), sin).flatten(2)
        keys[:, :, start] = turned[:, -kv_heads:]
        values[:, :, start] = value.flatten(2)
        query = turned[:, :-kv_heads].reshape(rows * kv_heads, -1, self.head_dim)  # query heads that share keys are rows of one product
        key, value = keys.flatten(0, 1)[:, : start + 1], values.flatten(0, 1)[:, : start + 1]
        if self.softcap is None:
            scores = torch.baddbmm(mask, query, key.mT, alpha=self.scale)
        else:
            scores = torch.tanh(torch.bmm(query, key.mT) * (self.scale / self.softcap)) * self.softcap + mask
        out = self.o(torch.bmm(torch.softmax(scores, -1), value).view(rows, -1))
        hidden = hidden + (out if self.after_attention is None else self.after_attention(out))
        gate, up = self.gate_up(self.before_mlp(hidden)).chunk(2, -1)
        out = self.down(self.activation(gate) * up)
        return hidden + (out if self.after_mlp is None else self.after_mlp(out))


class LeanStep:
    """The step of a model that is_known. positions: how many there will be."""

    def __init__(self, model: PreTrainedModel, positions: int) -> None:
        body, kind = model.base_model, model.config.model_type
        gemma = kind.startswith("gemma")
        self.embed, self.norm = body.embed_tokens, Norm(body.norm, gemma)
        self.layers = [Layer(module, gemma, kind == "gemma2") for module in body.layers]
        cos, sin = body.rotary_emb(model.get_input_embeddings().weight[:1], torch.arange(positions, device=model.device)[None])
        half = cos.shape[-1] // 2
        self.cos = cos[0].view(positions, 1, 2, half)
        self.sin = torch.stack([-sin[0, :, :half], sin[0, :, half:]], 1).unsqueeze(1)

    def __call__(self, ids: Tensor, position: Tensor, cache: Sequence[tuple[Tensor, Tensor]], start: int, mask: Tensor, near: Tensor | None) -> Tensor:
        """ids, position [rows]; cache: keys and values a layer; mask, near (sliding layers): additive [rows, 1, 1, start + 1] -> hidden states [rows, width]."""
        kv_heads = cache[0][0].shape[1]
        wide, near = (None if m is None else m.expand(-1, kv_heads, -1, -1).reshape(-1, 1, m.shape[-1]) for m in (mask, near))
        hidden, cos, sin = self.embed(ids), self.cos[position], self.sin[position]
        for layer, (keys, values) in zip(self.layers, cache, strict=True):
            hidden = layer(hidden, cos, sin, keys, values, start, near if layer.slides else wide)
        return self.norm(hidden)
