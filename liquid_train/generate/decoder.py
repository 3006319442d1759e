"""Running a plain transformers causal LM step by step: a preallocated KV cache, explicit positions, explicit masks.

A row of tokens is a stem (branch 0) that every token of the row sees, followed by any number of branches (1, 2, ...)
that see the stem and themselves, never each other: all questions about one image share the image's keys and values.
Padding has branch -1 and is seen by nobody, wherever in a row it stands. A row without branches is an ordinary causal
sequence.

    row     pad pad bos <boi> c0 c1 ... <eoi> q q q | q q q q
    branch  -1  -1  0   0     0  0      0     1 1 1   2 2 2 2
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from liquid_train.errors import UserError
from liquid_train.generate.compiled_decode import CompiledStep
from liquid_train.generate.fused_decode import FusedStep, is_known
from liquid_train.generate.grouped_attention import GROUPED
from liquid_train.model.families import family_of

STEM, PADDING = 0, -1


class PreallocatedLayer(DynamicLayer):
    """Keys and values of one layer in memory that is reserved once; attention reads the part that is filled.

    transformers' DynamicLayer copies everything at every step, its StaticLayer attends to the whole reserve at every
    step.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.capacity, self.length = capacity, 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.device = key_states.device
        self.keys, self.values = (
            t.new_zeros(*t.shape[:2], self.capacity, t.shape[3]) for t in (key_states, value_states)
        )
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """key_states, value_states [rows, heads, new, head_dim] -> all so far [rows, heads, length, head_dim]."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, self.length = self.length, self.length + key_states.shape[2]
        assert self.keys is not None and self.values is not None and self.length <= self.capacity
        self.keys[:, :, start : self.length] = key_states
        self.values[:, :, start : self.length] = value_states
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def reserve(self) -> tuple[Tensor, Tensor]:
        """All of the memory [rows, heads, capacity, head_dim], of which the caller fills one column more."""
        self.length += 1
        assert self.keys is not None and self.values is not None and self.length <= self.capacity
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self.length

    def take(self, rows: Tensor) -> None:
        """Go on with these rows, repeated where they are named twice."""
        assert self.keys is not None and self.values is not None
        keys, values = self.keys, self.values
        self.keys, self.values = (t.new_zeros(len(rows), *t.shape[1:]) for t in (keys, values))
        self.keys[:, :, : self.length] = keys[rows, :, : self.length]
        self.values[:, :, : self.length] = values[rows, :, : self.length]


class CachedDecoder:
    """A model and the keys and values of everything it was fed: `rows` sequences of up to `capacity` tokens.

    The model must be in eval mode; whatever attention it was loaded with, it attends as grouped_attention.py says.
    Raises UserError when a sequence would be longer than the model's max_position_embeddings; `longest` is the longest
    row without its padding and with all that is still to come. compile: the steps, as compiled_decode.py says.
    """

    def __init__(self, model: PreTrainedModel, rows: int, capacity: int, longest: int, compile: bool = False) -> None:
        limit = getattr(model.config, "max_position_embeddings", None)
        if limit is not None and longest > limit:
            raise UserError(
                f"prompt and continuation take {longest} tokens, the model goes up to {limit} "
                "(max_position_embeddings); shorten "
                "the prompt"
            )
        assert not model.training
        self.model, self.body = model, model.base_model
        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype
        self.branch = torch.full((rows, capacity), PADDING, device=self.device)
        self.position = torch.zeros((rows, capacity), dtype=torch.int64, device=self.device)
        # [rows, 1, 1, capacity]: the mask of a new token of a stem
        self.hidden_columns = self._additive(self.branch.unsqueeze(1) == STEM)
        kinds = getattr(model.config, "layer_types", None)
        self.everywhere = not kinds  # whether the window, if there is one, is that of all layers (Mistral, Phi-3)
        slides = not kinds or "sliding_attention" in kinds
        self.window = getattr(model.config, "sliding_window", None) if slides else None
        self.length = 0
        self.layers = [PreallocatedLayer(capacity) for _ in range(model.config.num_hidden_layers)]
        self.cache = Cache(layers=list(self.layers))
        # transformers 5.24 renamed the argument
        self.cache_argument = (
            "cache" if "cache" in inspect.signature(type(self.body).forward).parameters else "past_key_values"
        )
        head = model.get_output_embeddings()
        self.head_weight, self.head_bias = head.weight, head.bias
        family = family_of(model.config.model_type)
        self.softcap, self.scale = family.logit_softcap(model.config), family.logit_scale(model.config)
        self.fused = FusedStep(model, longest) if is_known(model) else None
        self.compile = compile
        self.compiled: CompiledStep | None = None

    def feed(self, ids: Tensor, branch: Tensor, position: Tensor) -> Tensor:
        """Append ids [rows, n] -> hidden states after the last norm [rows, n, width].

        branch: [rows, n]. position: [rows, n], each token's place in its own sequence.
        """
        start, self.length = self.length, self.length + ids.shape[1]
        self.branch[:, start : self.length] = branch
        self.position[:, start : self.length] = position
        self.hidden_columns[..., start : self.length] = self._additive(branch.unsqueeze(1) == STEM)
        return self._forward(ids, position, self._masks(start, self.length))

    def step(self, ids: Tensor, position: Tensor) -> Tensor:
        """Append one token to every row's stem: ids and position [rows, 1] -> hidden states [rows, width]."""
        start, self.length = self.length, self.length + 1
        self.branch[:, start] = STEM
        self.position[:, start] = position[:, 0]
        self.hidden_columns[..., start] = 0
        width = self.branch.shape[1] if self.compile else self.length
        masks = self.hidden_columns[..., :width] if self.window is None else self._masks(start, width)
        if self.fused is None:
            return self._forward(ids, position, masks)[:, 0]
        wide, near = (
            (masks["full_attention"], masks["sliding_attention"]) if isinstance(masks, dict) else (masks, masks)
        )
        cache = [layer.reserve() for layer in self.layers]
        if not self.compile:
            return self.fused(ids[:, 0], position[:, 0], cache, slice(start, self.length), wide, near)
        if self.compiled is None:  # the first step after the prompts: from here on the cache stays where it is
            self.compiled = CompiledStep(self.fused, cache)
        return self.compiled(ids[:, 0], position[:, 0], start, wide, near)

    def take(self, rows: Tensor) -> None:
        """Go on with these rows, int64 [n], repeated where they are named twice."""
        self.branch, self.position, self.hidden_columns = (
            self.branch[rows],
            self.position[rows],
            self.hidden_columns[rows],
        )
        self.compiled = None
        for layer in self.layers:
            layer.take(rows)

    def _forward(self, ids: Tensor, position: Tensor, masks: Tensor | dict[str, Tensor]) -> Tensor:
        config, before = self.model.config, self.model.config._attn_implementation
        config._attn_implementation = GROUPED
        try:
            arguments = {"attention_mask": masks, "position_ids": position, self.cache_argument: self.cache}
            hidden: Tensor = self.body(input_ids=ids, use_cache=True, **arguments).last_hidden_state
            return hidden
        finally:
            config._attn_implementation = before

    def logits(self, hidden: Tensor, first: int, end: int) -> Tensor:
        """hidden [..., width] -> fp32 logits [..., end - first] of the ids first .. end-1; no other row of the head is
        read."""
        bias = None if self.head_bias is None else self.head_bias[first:end]
        logits = F.linear(hidden, self.head_weight[first:end], bias).float() * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def _masks(self, start: int, width: int) -> Tensor | dict[str, Tensor]:
        """Additive mask [rows, 1, new, width] for the tokens from `start` on; one a kind of layer where a window
        slides."""
        seen, new = self.branch[:, None, :width], self.branch[:, start : self.length, None]
        order = torch.arange(width, device=self.device)
        visible = ((seen == STEM) | ((seen == new) & (seen > STEM))) & (order <= order[start : self.length, None])
        if self.window is None:
            return self._additive(visible)
        distance = self.position[:, start : self.length, None] - self.position[:, None, :width]
        near = visible & (distance < self.window)
        if self.everywhere:
            return self._additive(near)
        return {"full_attention": self._additive(visible), "sliding_attention": self._additive(near)}

    def _additive(self, visible: Tensor) -> Tensor:
        # not -inf: padding sees nobody, and the softmax of nothing but -inf is NaN
        return (
            torch.zeros(visible.shape, dtype=self.dtype, device=self.device)
            .masked_fill_(~visible, torch.finfo(self.dtype).min)
            .unsqueeze(1)
        )


def left_padded(
    rows: Sequence[Sequence[int]], pad: int, device: torch.device, width: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Token lists -> (ids, branch, position), each [rows, width or the longest]; every row ends in the last column."""
    width = max(len(row) for row in rows) if width is None else width
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], device=device)
    lengths = torch.tensor([[len(row)] for row in rows], device=device)
    position = torch.arange(width, device=device) - (width - lengths)
    return ids, torch.where(position < 0, PADDING, STEM), position.clamp(min=0)
