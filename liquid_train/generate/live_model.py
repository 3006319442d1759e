"""The model of a run that is training, as a plain one for generation: its weights are gathered and shared, not copied.

While it lasts each rank draws or answers on its own. It holds the whole model in the compute type, or, where there is
no room for that, one block at a time (sharded_blocks.py).
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import AutoModelForCausalLM, PreTrainedModel

from liquid_train.generate.sharded_blocks import SharedBlocks, whole


@dataclass(frozen=True)
class LiveModel:
    """model: plain, in eval mode. settle: every rank calls it before a collective of its own."""

    model: PreTrainedModel
    settle: Callable[[], None]


@contextmanager
def live_model(
    root: nn.Module, lm: PreTrainedModel, device: torch.device, *, sharded: bool = False
) -> Iterator[LiveModel]:
    """root: what FSDP wraps (or not), lm: the causal LM inside it; a collective on entering and on leaving.

    sharded: its blocks are gathered one by one, as they are used. Nothing may train before the end of the block: then
    all weights are sharded again.
    """
    groups = [module for module in root.modules() if isinstance(module, FSDPModule)]
    blocks = list(lm.model.layers) if sharded else []
    gathered = [module for module in groups if module not in blocks]
    for module in gathered:
        module.unshard()
    live = None
    try:
        plain = _plain_model(lm, device, "model.layers." if sharded else None)
        live = LiveModel(plain, SharedBlocks(blocks, plain.model.layers).settle if sharded else lambda: None)
        yield live
        live.settle()
    finally:
        plain = live = None  # type: ignore[assignment]  # before the gathered memory is freed
        gc.collect()
        for module in groups:
            module.reshard()


def _plain_model(lm: PreTrainedModel, device: torch.device, left_out: str | None) -> PreTrainedModel:
    """The model over lm's gathered weights, but for those whose names begin with `left_out`, which are on meta."""
    config = copy.deepcopy(lm.config)
    config._attn_implementation = "eager"  # any: the decoder brings its own
    with torch.device("meta"):
        plain: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=lm.dtype)
    for module in plain.modules():  # rotary tables and the like are in no checkpoint: transformers computes them
        if any(True for _ in module.buffers(recurse=False)):
            module.to_empty(device=device, recurse=False)
            plain._init_weights(module)
    weights = {
        name: whole(parameter)
        for name, parameter in lm.named_parameters(remove_duplicate=False)
        if left_out is None or not name.startswith(left_out)
    }
    plain.load_state_dict(weights, strict=False, assign=True)
    plain.tie_weights()  # each name was given a parameter of its own
    plain.eval().requires_grad_(False)
    return plain
