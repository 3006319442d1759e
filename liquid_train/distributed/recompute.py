"""What is kept of a block's forward for its backward, and torch.compile of the block: the two depend on each other."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from liquid_train.distributed.settings import ParallelConfig

# What selective activation checkpointing keeps: matrix products and attention take most of a block's time, the rest is
# cheap to recompute.
KEPT = [
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops._c10d_functional.all_reduce.default,
]
# of flash-attn's and torch's variable-length attention, whose operators exist only once they are imported
KEPT_NAMESPACES = ("flash_attn", "torch_attn")


def what_to_keep(context: object, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    kept = (
        operator in KEPT
        or operator is torch.ops.higher_order.flex_attention
        or getattr(operator, "namespace", None) in KEPT_NAMESPACES
    )
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def recompute_and_compile(block: nn.Module, config: ParallelConfig, *, one_graph: bool) -> None:
    """Activation checkpointing and compile of a block, by the config.

    one_graph: nothing breaks the block's graph. Then the checkpoint lies inside the compiled function, and the compiler
    keeps what selective checkpointing says. Otherwise the functions between the breaks are compiled, inside the
    checkpoint: around one, dynamo gives the whole block up at its first break (0 graphs of a Qwen2 layer, not 4).
    """
    if config.compile and not one_graph:
        block.forward = torch.compile(block.forward)
    if config.activation_checkpoint != "none":
        checkpoint_activations(block, selective=config.activation_checkpoint == "selective")
    if config.compile and one_graph:
        block.compile()


def checkpoint_activations(block: nn.Module, *, selective: bool) -> None:
    """Keep only the block's input for the backward (with `selective`, also KEPT) and recompute the rest there.

    The forward is wrapped, not the module, so that parameters keep their names.
    """
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}  # there is no dropout
    if selective:
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, what_to_keep)
    inner = block.forward

    def forward(*args: Any, **kwargs: Any) -> Any:  # no functools.partial: dynamo compiles nothing of that
        return checkpoint(inner, *args, **options, **kwargs)

    block.forward = forward


def compiled_graphs() -> int:
    """How many graphs this process has compiled."""
    return int(counters["stats"]["unique_graphs"])
