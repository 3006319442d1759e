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
from torch._C._distributed_c10d import HashStore
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import _set_pg_timeout
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from transformers import PreTrainedModel

from liquid_train.distributed.settings import ParallelConfig, degrees
from liquid_train.distributed.tensor_parallel import cut


@dataclass(frozen=True)
class World:
    """This process among all ranks. Groups of `tensor` neighbouring ranks hold parts of the same matrices and read the
    same data. timeout: of a collective; None: torch's own."""

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
        """This rank's number among the groups that each read their own data."""
        return self.rank // self.tensor

    @property
    def data_size(self) -> int:
        return self.size // self.tensor

    def sum(self, values: Tensor) -> None:
        """Sum over the data ranks, in place; a collective. Tensor-parallel neighbours hold equal values, counted
        once."""
        if self.size > 1:
            dist.all_reduce(values)
        if self.tensor > 1:
            values /= self.tensor


@contextlib.contextmanager
def process_group(tensor: int = 1, timeout: timedelta | None = None) -> Iterator[World]:
    """Join the processes that torchrun started, or form a group of one. NCCL where each rank has a GPU, else gloo."""
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
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    # it warns at every save that two gathers could be one
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
    try:
        yield World(rank, size, device, tensor, timeout)
        dist.barrier()  # no rank leaves while another still needs it
    finally:
        gc.collect()  # sharded tensors must be gone before the group is, or gloo aborts at exit
        dist.destroy_process_group()


def make_mesh(config: ParallelConfig, world: World) -> DeviceMesh:
    """replicate x shard x tensor. Neighbours in `tensor` are neighbouring ranks, so that they share a machine's fast
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


def parallelize(root: nn.Module, lm: PreTrainedModel, config: ParallelConfig, world: World) -> None:
    """Tensor parallelism, activation checkpointing, compile, FSDP2, in this order: each wraps the result of the one
    before.

    root: the module that holds `lm` and whose forward is a whole training step's forward, loss included. On meta.
    """
    mesh = make_mesh(config, world)
    blocks = lm.model.layers
    if config.tensor > 1:
        cut(lm, mesh["tensor"])
    for block in blocks:
        if config.activation_checkpoint != "none":
            checkpoint_activations(block, selective=config.activation_checkpoint == "selective")
        if config.compile:
            block.compile()
    compute = compute_dtype(config)
    # Sharded weights stay fp32, gathered copies are cast to the compute dtype, gradients are summed in fp32.
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32)
    options: dict[str, Any] = {
        "mesh": mesh["replicate", "shard"] if config.replicate > 1 else mesh["shard"],
        "mp_policy": policy,
    }
    if config.cpu_offload:
        options["offload_policy"] = CPUOffloadPolicy(pin_memory=world.device.type == "cuda")
    for block in blocks:  # the last block stays gathered: its backward comes next
        fully_shard(block, **options, reshard_after_forward=block is not blocks[-1])
    # Embedding, final norm and head form the root's group: tied weights must be in one group, and the head is read last
    # in the forward and first in the backward, so that freeing it in between would gather it twice.
    fully_shard(root, **options)


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


def checkpoint_activations(block: nn.Module, *, selective: bool) -> None:
    """Keep only the block's input for the backward (with `selective`, also KEPT) and recompute the rest there.

    The forward is wrapped, not the module, so that parameters keep their names.
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
    """Sum gradients over replicas only after the last micro-batch of a step.

    Over shards they are reduced and scattered after each: kept whole, they took 4 bytes a parameter of the whole model
    on every rank, 131 GB for 32B.
    """
    if isinstance(root, FSDPModule):
        root.set_requires_all_reduce(last)


def reshard(root: nn.Module) -> None:
    """Free gathered parameters after a forward without a backward: the root would otherwise keep its own, and expose
    them instead of its shards."""
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
