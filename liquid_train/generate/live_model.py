"""The model of a run that is training, as a plain one for generation: its weights are gathered once and shared, not
copied.

While it lasts each rank holds the whole model in the compute type, and draws or answers on its own, with no talk
between the ranks.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, PreTrainedModel


@contextmanager
def live_model(root: nn.Module, lm: PreTrainedModel, device: torch.device) -> Iterator[PreTrainedModel]:
    """root: what FSDP wraps (or not), lm: the causal LM inside it -> a plain model in eval mode; a collective on
    entering.

    Nothing may train before the end of the block: then the weights are sharded again.
    """
    sharded = [module for module in root.modules() if isinstance(module, FSDPModule)]
    for module in sharded:
        module.unshard()
    try:
        config = copy.deepcopy(lm.config)
        config._attn_implementation = "eager"  # any: the decoder brings its own
        with torch.device("meta"):
            plain = AutoModelForCausalLM.from_config(config, dtype=lm.dtype)
        for module in plain.modules():  # rotary tables and the like are in no checkpoint: transformers computes them
            if any(True for _ in module.buffers(recurse=False)):
                module.to_empty(device=device, recurse=False)
                plain._init_weights(module)
        gathered = {name: whole(parameter) for name, parameter in lm.named_parameters(remove_duplicate=False)}
        plain.load_state_dict(gathered, strict=False, assign=True)
        plain.tie_weights()  # each name was given a parameter of its own
        yield plain.eval().requires_grad_(False)
    finally:
        plain = gathered = None  # type: ignore[assignment]  # before the gathered memory is freed
        gc.collect()
        for module in sharded:
            module.reshard()


def whole(parameter: Tensor) -> Tensor:
    """A gathered parameter; the parts of tensor-parallel ranks are put together, which copies; then a collective."""
    return (parameter.full_tensor() if isinstance(parameter, DTensor) else parameter).detach()
