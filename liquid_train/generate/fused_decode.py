"""One token a row through a decoder, without the calls around the arithmetic: the step that image generation repeats a
thousand times.

In a small model the modules of transformers, their keyword arguments and a dozen small operations for each norm and
rotation cost as much as the products. Here a step is a flat list of products over the same weights. It serves the
families that say so (model/families), whatever their sizes; other models, and modules that were exchanged (adapters),
take transformers' own forward pass (decoder.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from liquid_train.generate.int8 import Int8Linear, int8_linear
from liquid_train.model.families import Family, family_of

FIXED_ROTATIONS = ("default", "linear", "llama3", "yarn")  # the others change their frequencies with the length
# products of the same input
JOINED = (("self_attn", ("q_proj", "k_proj", "v_proj")), ("mlp", ("gate_proj", "up_proj")))
PROJECTIONS = (*JOINED, ("self_attn", ("o_proj",)), ("mlp", ("down_proj",)))


def is_known(model: PreTrainedModel) -> bool:
    """Whether FusedStep computes what the model's own forward pass does."""
    config, body = model.config, cast(Any, model.base_model)
    if (
        not family_of(config.model_type).fused_decode
        or (getattr(config, "rope_parameters", None) or {}).get("rope_type") not in FIXED_ROTATIONS
    ):
        return False
    if next(body.layers.parameters()).is_meta:  # its blocks are gathered as they are used (sharded_blocks.py)
        return False
    kinds = {type(m) for layer in body.layers for part, names in PROJECTIONS for m in modules(layer, part, names)}
    return kinds in ({nn.Linear}, {Int8Linear})


def modules(layer: Any, part: str, names: Sequence[str]) -> list[Any]:
    return [getattr(getattr(layer, part), name) for name in names]


@torch.no_grad()
def join_weights(model: PreTrainedModel) -> None:
    """Lay the weights that multiply the same input next to each other in memory, so that FusedStep takes one
    product for them.

    The model stays what it was; one group of weights at a time exists twice. Moving the model or its dtype parts them
    again.
    """
    for layer in cast(Any, model.base_model).layers if is_known(model) else ():
        for part, names in JOINED:
            for tensors in tensors_of(modules(layer, part, names)):
                for tensor, piece in zip(tensors, torch.cat(tensors).split([len(t) for t in tensors]), strict=True):
                    tensor.data = piece


def tensors_of(linears: Sequence[nn.Linear | Int8Linear]) -> Iterator[list[Tensor]]:
    """The weights of the modules, then their scales where they have some, then their biases where they have some."""
    for kind in ("weight", "scale", "bias"):
        if getattr(linears[0], kind, None) is not None:
            yield [getattr(linear, kind) for linear in linears]


def joined(tensors: Sequence[Tensor]) -> Tensor | None:
    """The one tensor of which these are the consecutive rows, or None where they lie elsewhere; without a copy."""
    first, end = tensors[0], tensors[0].data_ptr()
    for tensor in tensors:
        if (
            tensor.data_ptr() != end
            or not tensor.is_contiguous()
            or tensor.untyped_storage().data_ptr() != first.untyped_storage().data_ptr()
        ):
            return None
        end += tensor.numel() * tensor.element_size()
    return first.detach().as_strided((sum(map(len, tensors)), *first.shape[1:]), first.stride())


class Product:
    """The products of one input with some linear modules, next to each other: [rows, inputs] -> [rows, sum of
    outputs]."""

    def __init__(self, linears: Sequence[nn.Linear | Int8Linear]) -> None:
        self.linear: Callable[..., Tensor] = int8_linear if isinstance(linears[0], Int8Linear) else F.linear
        kinds = list(tensors_of(linears))
        whole = [joined(tensors) for tensors in kinds]
        self.parts = list(zip(*kinds, strict=True)) if any(t is None for t in whole) else [tuple(whole)]

    def __call__(self, x: Tensor) -> Tensor:
        found = [self.linear(x, *part) for part in self.parts]
        return found[0] if len(found) == 1 else torch.cat(found, -1)


class Norm:
    """RMSNorm; adds_one: it multiplies by 1 + weight, in fp32."""

    def __init__(self, module: Any, adds_one: bool) -> None:
        self.weight = 1 + module.weight.detach().float() if adds_one else module.weight
        self.eps = module.eps if hasattr(module, "eps") else module.variance_epsilon

    def __call__(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.to(self.weight.dtype), self.weight.shape, self.weight, self.eps).to(x.dtype)


class Layer:
    """The weights of one layer and its step."""

    def __init__(self, module: Any, family: Family) -> None:
        attention, adds_one, more = module.self_attn, family.norms_add_one, family.norms_after
        self.qkv, self.gate_up, self.o, self.down = (
            Product(modules(module, part, names)) for part, names in PROJECTIONS
        )
        self.before_attention = Norm(module.input_layernorm, adds_one)
        after = Norm(module.post_attention_layernorm, adds_one)
        self.after_attention = after if more else None
        self.before_mlp = Norm(module.pre_feedforward_layernorm, adds_one) if more else after
        self.after_mlp = Norm(module.post_feedforward_layernorm, adds_one) if more else None
        self.activation = module.mlp.act_fn
        self.head_dim, self.scale = attention.head_dim, attention.scaling
        self.softcap = getattr(attention, "attn_logit_softcapping", None)
        self.slides = getattr(attention, "sliding_window", None) is not None

    def __call__(
        self,
        hidden: Tensor,
        cos: Tensor,
        sin: Tensor,
        keys: Tensor,
        values: Tensor,
        column: slice | Tensor,
        mask: Tensor,
    ) -> Tensor:
        """hidden [rows, width] -> the same after the layer; keys and values [rows, kv_heads, capacity, head_dim] get
        one `column`.

        cos, sin: [rows, 1, 2, head_dim / 2], sin of the first half negated. mask: additive [rows * kv_heads, 1, columns
        that are read].
        """
        rows, kv_heads = keys.shape[:2]
        found = self.qkv(self.before_attention(hidden)).view(rows, -1, 2, self.head_dim // 2)
        turning, value = found[:, :-kv_heads], found[:, -kv_heads:]
        turned = torch.addcmul(turning * cos, turning.flip(2), sin).flatten(2)
        keys[:, :, column] = turned[:, -kv_heads:].unsqueeze(2)
        values[:, :, column] = value.flatten(2).unsqueeze(2)
        # query heads that share keys are rows of one product
        query = turned[:, :-kv_heads].reshape(rows * kv_heads, -1, self.head_dim)
        key, value = (t.flatten(0, 1)[:, : mask.shape[-1]] for t in (keys, values))
        if query.device.type == "cpu":  # its products of one row in bf16 take longer than fp32's with the conversion
            query, key, value, mask = (t.float() for t in (query, key, value, mask))
        if self.softcap is None:
            scores = torch.baddbmm(mask, query, key.mT, alpha=self.scale)
        else:
            scores = torch.tanh(torch.bmm(query, key.mT) * (self.scale / self.softcap)) * self.softcap + mask
        out = self.o(torch.bmm(torch.softmax(scores, -1), value).view(rows, -1).to(hidden.dtype))
        hidden = hidden + (out if self.after_attention is None else self.after_attention(out))
        gate, up = self.gate_up(self.before_mlp(hidden)).chunk(2, -1)
        out = self.down(self.activation(gate) * up)
        return hidden + (out if self.after_mlp is None else self.after_mlp(out))


class FusedStep:
    """The step of a model that is_known. positions: how many there will be."""

    def __init__(self, model: PreTrainedModel, positions: int) -> None:
        body, family = cast(Any, model.base_model), family_of(model.config.model_type)
        self.embed, self.norm = body.embed_tokens, Norm(body.norm, family.norms_add_one)
        self.layers = [Layer(module, family) for module in body.layers]
        cos, sin = body.rotary_emb(self.embed.weight[:1], torch.arange(positions, device=model.device)[None])
        half = cos.shape[-1] // 2
        self.cos = cos[0].view(positions, 1, 2, half)
        self.sin = torch.stack([-sin[0, :, :half], sin[0, :, half:]], 1).unsqueeze(1)

    def __call__(
        self,
        ids: Tensor,
        position: Tensor,
        cache: Sequence[tuple[Tensor, Tensor]],
        column: slice | Tensor,
        mask: Tensor,
        near: Tensor,
    ) -> Tensor:
        """ids, position [rows]; mask, near (of sliding layers): additive [rows, 1, 1, columns that are read] -> hidden
        states [rows, width].

        cache: keys and values of each layer, which get one `column` (a slice, or its number as an int64 tensor [1]).
        """
        kv_heads = cache[0][0].shape[1]
        mask, near = (m.expand(-1, kv_heads, -1, -1).reshape(-1, 1, m.shape[-1]) for m in (mask, near))
        hidden, cos, sin = self.embed(ids), self.cos[position], self.sin[position]
        for layer, (keys, values) in zip(self.layers, cache, strict=True):
            hidden = layer(hidden, cos, sin, keys, values, column, near if layer.slides else mask)
        return self.norm(hidden)
