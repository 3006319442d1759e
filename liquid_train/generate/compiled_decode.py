"""The fused step through torch.compile: on a GPU as CUDA graphs (mode reduce-overhead), on a CPU as fused C++.

Shapes must not change from step to step: attention goes over the whole reserve of the cache, hidden after the mask,
and the column that is written is a tensor. Compiled code rounds at other places than torch's own operations, so its
logits are not equal to the bit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from liquid_train.errors import UserError
from liquid_train.generate.fused_decode import FusedStep, is_known


def require_compiler(model: PreTrainedModel) -> None:
    """Raises UserError where the model's step cannot be compiled: another family, or no C++ compiler on this
    machine."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    if not is_known(model):
        raise UserError(
            f"compile=true: a model of type {model.config.model_type} with these modules has no step to compile; "
            "leave it out"
        )
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise UserError(
            "compile=true: no C++ compiler was found; install g++ (or name one in the variable CXX), or leave it out"
        ) from error


@functools.cache
def compiled_call() -> Callable[..., Tensor]:
    """FusedStep's call; compiled once a process for every kind of model and every shape."""
    return torch.compile(FusedStep.__call__, mode="reduce-overhead", dynamic=False)


class CompiledStep:
    """FusedStep at fixed shapes; cache: keys and values of each layer, filled with finite numbers."""

    def __init__(self, fused: FusedStep, cache: list[tuple[Tensor, Tensor]]) -> None:
        self.fused, self.cache = fused, cache
        for tensor in (*tensors_in(fused), *tensors_in(cache)):
            torch._dynamo.mark_static_address(tensor)  # else a CUDA graph copies it at every step

    def __call__(self, ids: Tensor, position: Tensor, start: int, mask: Tensor, near: Tensor) -> Tensor:
        """As FusedStep, with masks of the whole reserve -> hidden states [rows, width]."""
        torch.compiler.cudagraph_mark_step_begin()
        column = torch.tensor([start], device=ids.device)
        return compiled_call()(self.fused, ids, position, self.cache, column, mask, near)


def tensors_in(thing: Any) -> Iterator[Tensor]:
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, (list, tuple)):
        for item in thing:
            yield from tensors_in(item)
    elif type(thing).__module__ == FusedStep.__module__:
        yield from tensors_in(list(vars(thing).values()))
