"""Tensor parallelism (Megatron-LM, arXiv 1909.08053): the matrices of a block, the embedding and the head are split
over the ranks of `tensor`.

    q k v gate up    by output       each rank computes its own heads and its own part of the MLP
    o down           by input        their results are summed over the ranks
    embedding, head  by vocabulary   model/loss.py computes the loss without ever gathering the logits
    norms            not split       replicated DTensors, so that every parameter is on the same mesh; with
                                     parallel.sequence each rank normalizes its own part of the sequence
    norms of heads   not split       each rank's heads pass through; the gradients are summed over the ranks (Qwen3)

With parallel.sequence (Megatron's sequence parallelism, arXiv 2205.05198) what lies between the products, the residual
stream and its norms, is cut along the sequence: the sum over the ranks becomes a sum of which each rank keeps its part,
and attention and MLP gather their input, which is as much talk and 1/tensor of the activations.

How each matrix is split is transformers' own plan for the architecture (config.base_model_tp_plan).
"""

from __future__ import annotations

import re
from fnmatch import fnmatch
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_module, distribute_tensor
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
ALONG_SEQUENCE = Shard(1)  # [n, seq_len, d]


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


def cut(lm: PreTrainedModel, mesh: DeviceMesh, *, sequence: bool = False) -> None:
    """Replace the model's parameters (on any device, meta too) by DTensors on the one-dimensional `mesh`. In place.

    sequence: the activations between the products are cut too. The model still takes and gives whole sequences, whose
    length the mesh's size must divide.
    """
    styles = check_tensor_degree(lm, mesh.size())
    between: Placement = ALONG_SEQUENCE if sequence else Replicate()
    plan = {
        pattern: RowwiseParallel(output_layouts=between) if style == "rowwise" else STYLES[style]()
        for pattern, style in styles.items()
    }
    parallelize_module(lm.model, mesh, plan)
    tied = lm.get_output_embeddings().weight is lm.get_input_embeddings().weight
    embedding = RowwiseParallel(input_layouts=Replicate(), output_layouts=between)
    parallelize_module(lm.get_input_embeddings(), mesh, embedding)
    lm.get_input_embeddings().register_forward_hook(_arrived)
    head = lm.get_output_embeddings()
    head.weight = (
        lm.get_input_embeddings().weight if tied else nn.Parameter(distribute_tensor(head.weight, mesh, [Shard(0)]))
    )
    for name, module in lm.named_modules():
        own = list(module.parameters(recurse=False))
        if NORM.search(name) and own and not isinstance(own[0], DTensor):
            last = sequence and not name.startswith("model.layers.")
            leave = _to_whole if last else _to_local
            distribute_module(module, mesh, None, partial(_enter, between), leave)  # type: ignore[arg-type]  # torch's annotation lacks the results
    if sequence:
        inputs = {pattern.rpartition(".")[0] for pattern, style in styles.items() if style == "colwise"}
        for name, module in lm.model.named_modules():
            if any(fnmatch(name, pattern) for pattern in inputs):
                module.register_forward_pre_hook(partial(_gather_input, mesh), with_kwargs=True)


def _gather_input(
    mesh: DeviceMesh, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The whole sequences before the first products of attention or MLP, as a DTensor: their gradients are then summed
    over the products first, and over the ranks once."""

    def whole(part: Tensor) -> DTensor:
        return DTensor.from_local(part, mesh, [ALONG_SEQUENCE], run_check=False).redistribute(mesh, [Replicate()])

    if args:
        return (whole(args[0]), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": whole(kwargs["hidden_states"])}


def _arrived(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    """The sum over the ranks once it has come. What is still on its way is a tensor of a class of its own, and a
    compiled block gives none of these a gradient: the embedding learned nothing from the blocks."""
    return output.clone()


def _enter(placement: Placement, _: nn.Module, inputs: tuple[Any, ...], mesh: DeviceMesh) -> tuple[Any, ...]:
    return tuple(
        DTensor.from_local(x, mesh, [placement], run_check=False) if isinstance(x, Tensor) else x for x in inputs
    )


def _to_cut_heads(_: nn.Module, inputs: tuple[Any, ...], mesh: DeviceMesh) -> tuple[Any, ...]:
    # [batch, heads here, ...] or [batch, seq_len, heads here, ...]: to a norm of the last dimension it is all the same
    # which of the others is cut, and the gradient of its weight is summed over the ranks either way
    return tuple(DTensor.from_local(x, mesh, [Shard(1)], run_check=False) for x in inputs)


def _to_local(_: nn.Module, output: DTensor, mesh: DeviceMesh) -> Tensor:
    return output.to_local()


def _to_whole(_: nn.Module, output: DTensor, mesh: DeviceMesh) -> Tensor:
    return output.redistribute(mesh, [Replicate()]).to_local()
