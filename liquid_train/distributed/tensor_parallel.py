"""Tensor parallelism (Megatron-LM, arXiv 1909.08053): the matrices of a block, the embedding and the head are split
over the ranks of `tensor`.

    q k v gate up    by output       each rank computes its own heads and its own part of the MLP
    o down           by input        their results are summed over the ranks
    embedding, head  by vocabulary   model/loss.py computes the loss without ever gathering the logits
    norms            not split       replicated DTensors, so that every parameter is on the same mesh

How each matrix is split is transformers' own plan for the architecture (config.base_model_tp_plan).
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module
from transformers import PreTrainedModel

from liquid_train.errors import UserError

STYLES: dict[str, type[ParallelStyle]] = {"colwise": ColwiseParallel, "rowwise": RowwiseParallel}


def check_tensor_degree(lm: PreTrainedModel, tensor: int) -> dict[str, str]:
    """transformers' plan {module pattern: colwise or rowwise}. Raises UserError when it has none for the architecture,
    or `tensor` does not divide the number of heads."""
    config = lm.config
    plan: dict[str, str] = config.base_model_tp_plan or {}
    if not plan or not set(plan.values()) <= set(STYLES):
        raise UserError(
            f"parallel.tensor={tensor}: transformers has no plan of plain column and row cuts for "
            f"{config.model_type}; set "
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


def cut(lm: PreTrainedModel, mesh: DeviceMesh) -> None:
    """Replace the model's parameters (on any device, meta too) by DTensors on the one-dimensional `mesh`. In place."""
    styles = check_tensor_degree(lm, mesh.size())
    parallelize_module(lm.model, mesh, {pattern: STYLES[style]() for pattern, style in styles.items()})
    tied = lm.get_output_embeddings().weight is lm.get_input_embeddings().weight
    embedding = RowwiseParallel(input_layouts=Replicate(), output_layouts=Replicate())
    parallelize_module(lm.get_input_embeddings(), mesh, embedding)
    head = lm.get_output_embeddings()
    head.weight = (
        lm.get_input_embeddings().weight if tied else nn.Parameter(distribute_tensor(head.weight, mesh, [Shard(0)]))
    )
    for name, module in lm.named_modules():
        if re.search(r"norm\w*$", name) and any(True for _ in module.parameters(recurse=False)):
            distribute_module(module, mesh, None, _to_replicated, _to_local)  # type: ignore[arg-type]  # torch's annotation lacks the results


def _to_replicated(_: nn.Module, inputs: tuple[Any, ...], mesh: DeviceMesh) -> tuple[Any, ...]:
    return tuple(
        DTensor.from_local(x, mesh, [Replicate()], run_check=False) if isinstance(x, Tensor) else x for x in inputs
    )


def _to_local(_: nn.Module, output: DTensor, mesh: DeviceMesh) -> Tensor:
    return output.to_local()
