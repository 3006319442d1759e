"""Processes, device mesh and sharding: one ordered function makes a meta model a sharded one."""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import _set_pg_timeout
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from liquid_train.distributed.settings import ParallelConfig, degrees
from liquid_train.distributed.tensor_parallel import cut
from liquid_train.model.loss import LossModule


@dataclass(frozen=True)
class World:
    """This process among the others. `tensor` neighbours hold parts of the same matrices and read the same data.
    timeout: of a collective; None: torch's own."""

    rank: int
    size: int
    device: torch.device
    tensor: int = 1
    timeout: timedelta | None = None

    @property
    def main(self) -> bool:
        return self.rank == 0

    @property
    def data_rank(self) -> int:
        """This rank's place among those that read data of their own."""
        return self.rank // self.tensor

    @property
    def data_size(self) -> int:
        return self.size // self.tensor

    def sum(self, values: Tensor) -> None:
        """Add up what the data ranks have, in place; a collective. Tensor-parallel neighbours have the same and count
        once."""
        if self.size > 1:
            dist.all_reduce(values)
        if self.tensor > 1:
            values /= self.tensor


@contextlib.contextmanager
def process_group(tensor: int = 1, timeout: timedelta | None = None) -> Iterator[World]:
    """Join the processes torchrun started, or stand alone as a group of one. NCCL where each rank has a GPU, else
    gloo."""
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local = int(os.environ.get("LOCAL_RANK", 0))
    cuda = torch.cuda.is_available() and local < torch.cuda.device_count()
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    if size > 1:
        dist.init_process_group(backend, timeout=timeout)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    # at every save: that two gathers are not one
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
    try:
        yield World(rank, size, device, tensor, timeout)
        dist.barrier()  # none leaves while another still talks to it
    finally:
        gc.collect()  # sharded tensors must be gone before the group is, or gloo aborts at exit
        dist.destroy_process_group()


def make_mesh(config: ParallelConfig, world: World) -> DeviceMesh:
    """replicate x shard x tensor; neighbours in `tensor` are neighbours in rank, so that they share a machine's fast
    links."""
    replicate, shard, tensor = degrees(config, world.size)
    mesh = init_device_mesh(
        world.device.type, (replicate, shard, tensor), mesh_dim_names=("replicate", "shard", "tensor")
    )
    if world.timeout is not None:
        for group in mesh.get_all_groups():  # they do not inherit it
            _set_pg_timeout(world.timeout, group)
    return mesh


def compute_dtype(config: ParallelConfig) -> torch.dtype:
    return torch.bfloat16 if config.precision == "bf16" else torch.float32


def parallelize(root: LossModule, config: ParallelConfig, world: World) -> None:
    """Tensor parallelism, activation checkpointing, compile, FSDP2: each wraps what the one before made. The model is
    on meta."""
    mesh = make_mesh(config, world)
    blocks = root.lm.model.layers
    if config.tensor > 1:
        cut(root.lm, mesh["tensor"])
    for block in blocks:
        if config.activation_checkpoint != "none":
            checkpoint_activations(block, selective=config.activation_checkpoint == "selective")
        if config.compile:
            block.compile()
    compute = compute_dtype(config)
    # Weights stay fp32 in their shards; gathered copies are cast to the compute type; gradients are summed in fp32.
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32)
    options: dict[str, Any] = {
        "mesh": mesh["replicate", "shard"] if config.replicate > 1 else mesh["shard"],
        "mp_policy": policy,
    }
    if config.cpu_offload:
        options["offload_policy"] = CPUOffloadPolicy(pin_memory=world.device.type == "cuda")
    for block in blocks:  # the last one's backward comes next: freed, it would be gathered again at once
        fully_shard(block, **options, reshard_after_forward=block is not blocks[-1])
    # Embedding, final norm and head form the root's group: tied weights must not be split over two groups, and the head
    # is read last and first again in the backward, so that freeing it in between would only gather it twice.
    fully_shard(root, **options)


# What a selective checkpoint keeps: products of matrices and attention are most of a block's time, the rest is cheap to
# repeat.
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
# variable-length attention of flash-attn and of torch, registered when first imported
KEPT_NAMESPACES = ("flash_attn", "torch_attn")


def what_to_keep(context: object, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    kept = (
        operator in KEPT
        or operator is torch.ops.higher_order.flex_attention
        or getattr(operator, "namespace", None) in KEPT_NAMESPACES
    )
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def checkpoint_activations(block: nn.Module, *, selective: bool) -> None:
    """Keep only the block's input (or, selective, also what KEPT lists) for the backward, and compute the rest again
    there.

    The forward is wrapped, not the module: parameters keep their names.
    """
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}  # there is no dropout
    if selective:
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, what_to_keep)
    block.forward = functools.partial(checkpoint, block.forward, **options)


def assert_dtypes(root: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Our invariant at the first step: fp32 weights and optimizer state."""
    assert all(p.dtype == torch.float32 for p in root.parameters()), "weights must be fp32"
    state = [v for s in optimizer.state.values() for v in s.values() if torch.is_tensor(v) and v.is_floating_point()]
    assert all(v.dtype == torch.float32 for v in state), "optimizer state must be fp32"


def set_sync(root: nn.Module, last: bool) -> None:
    """Reduce gradients only after the last micro-batch of a step."""
    if isinstance(root, FSDPModule):
        root.set_requires_gradient_sync(last)


def reshard(root: nn.Module) -> None:
    """Free gathered parameters after a forward without a backward: the root keeps its own, and would show them in place
    of its shards."""
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
