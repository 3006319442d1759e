"""Tensor parallelism (Megatron-LM, arXiv 1909.08053): the matrices of a block, the embedding and the head are split
over the ranks of `tensor`.

    q k v gate up    by output       each rank computes its own heads and its own part of the MLP
    o down           by input        their results are summed over the ranks
    embedding, head  by vocabulary   model/loss.py computes the loss without ever gathering the logits
    norms            not split       replicated DTensors, so that every parameter is on the same mesh
    norms of heads   not split       each rank's heads pass through; the gradients are summed over the ranks (Qwen3)

How each matrix is split is transformers' own plan for the architecture (config.base_model_tp_plan).
"""

from __future__ import annotations

import re
from fnmatch import fnmatch
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module
from transformers import PreTrainedModel

from liquid_train.errors import UserError

NORM = re.compile(r"norm\w*$")


class HeadNorm(ParallelStyle):
    """A norm of each head's own queries or keys, of which a rank has a part of the heads."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        return distribute_module(module, device_mesh, None, _to_cut_heads, _to_local)  # type: ignore[arg-type]  # torch's annotation lacks the results


STYLES: dict[str, type[ParallelStyle]] = {
    "colwise": ColwiseParallel,
    "rowwise": RowwiseParallel,
    "replicated_with_grad_allreduce": HeadNorm,
}


def check_tensor_degree(lm: PreTrainedModel, tensor: int) -> dict[str, str]:
    """transformers' plan {module pattern: style}. Raises UserError when it has none for the architecture or one that
    leaves weights out, or `tensor` does not divide the number of heads."""
    config = lm.config
    plan: dict[str, str] = config.base_model_tp_plan or {}
    if unknown := sorted(set(plan.values()) - set(STYLES)):
        raise UserError(
            f"parallel.tensor={tensor}: transformers' plan for {config.model_type} has {', '.join(unknown)} next to "
            "plain cuts, which is not done here; set parallel.tensor=1"
        )
    if left := _not_in_plan(lm, plan):
        raise UserError(
            f"parallel.tensor={tensor}: transformers' plan for {config.model_type} says nothing of {left}; set "
            "parallel.tensor=1"
        )
    if getattr(lm.get_output_embeddings(), "bias", None) is not None:
        raise UserError(
            f"parallel.tensor={tensor}: the head of {config.model_type} has a bias, which is not cut; set "
            "parallel.tensor=1"
        )
    for name in ("num_attention_heads", "num_key_value_heads"):
        heads = getattr(config, name)
        if heads % tensor:
            raise UserError(
                f"parallel.tensor={tensor}: does not divide the model's {name}={heads}; choose a divisor of it"
            )
    return plan


def _not_in_plan(lm: PreTrainedModel, plan: dict[str, str]) -> str | None:
    """The first module of the blocks that has weights and neither a style nor is a norm of the whole width."""
    for name, module in lm.model.named_modules():
        if not name.startswith("layers.") or next(module.parameters(recurse=False), None) is None:
            continue
        of_width = NORM.search(name) and "attn" not in name.split(".")[-2]
        if not of_width and not any(fnmatch(name, pattern) for pattern in plan):
            return str(name)
    return None


def cut(lm: PreTrainedModel, mesh: DeviceMesh) -> None:
    """Replace the model's parameters (on any device, meta too) by DTensors on the one-dimensional `mesh`. In place."""
    styles = check_tensor_degree(lm, mesh.size())
    parallelize_module(lm.model, mesh, {pattern: STYLES[style]() for pattern, style in styles.items()})
    tied = lm.get_output_embeddings().weight is lm.get_input_embeddings().weight
    embedding = RowwiseParallel(input_layouts=Replicate(), output_layouts=Replicate())
    parallelize_module(lm.get_input_embeddings(), mesh, embedding)
    lm.get_input_embeddings().register_forward_hook(_arrived)
    head = lm.get_output_embeddings()
    head.weight = (
        lm.get_input_embeddings().weight if tied else nn.Parameter(distribute_tensor(head.weight, mesh, [Shard(0)]))
    )
    for name, module in lm.named_modules():
        own = list(module.parameters(recurse=False))
        if NORM.search(name) and own and not isinstance(own[0], DTensor):
            distribute_module(module, mesh, None, _to_replicated, _to_local)  # type: ignore[arg-type]  # torch's annotation lacks the results


def _arrived(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    """The sum over the ranks once it has come. What is still on its way is a tensor of a class of its own, and a
    compiled block gives none of these a gradient: the embedding learned nothing from the blocks."""
    return output.clone()


def _to_replicated(_: nn.Module, inputs: tuple[Any, ...], mesh: DeviceMesh) -> tuple[Any, ...]:
    return tuple(
        DTensor.from_local(x, mesh, [Replicate()], run_check=False) if isinstance(x, Tensor) else x for x in inputs
    )


def _to_cut_heads(_: nn.Module, inputs: tuple[Any, ...], mesh: DeviceMesh) -> tuple[Any, ...]:
    # [batch, heads here, ...] or [batch, seq_len, heads here, ...]: to a norm of the last dimension it is all the same
    # which of the others is cut, and the gradient of its weight is summed over the ranks either way
    return tuple(DTensor.from_local(x, mesh, [Shard(1)], run_check=False) for x in inputs)


def _to_local(_: nn.Module, output: DTensor, mesh: DeviceMesh) -> Tensor:
    return output.to_local()
