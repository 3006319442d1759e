"""Processes, device mesh and sharding: one ordered function makes a meta model a sharded one."""

from __future__ import annotations

import contextlib
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
from transformers import PreTrainedModel

from liquid_train.distributed.recompute import recompute_and_compile
from liquid_train.distributed.settings import ParallelConfig, degrees
from liquid_train.distributed.tensor_parallel import check_tensor_degree, cut


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


def parallelize(
    root: nn.Module,
    lm: PreTrainedModel,
    config: ParallelConfig,
    world: World,
    head: nn.Module | None = None,
    *,
    one_graph: bool = False,
) -> None:
    """Tensor parallelism, activation checkpointing, compile, FSDP2, in this order: each wraps the result of the one
    before.

    root: the module that holds `lm` and whose forward is a whole training step's forward, loss included. On meta.
    head: the part of it that has weights and a forward of its own; None where it shares them with the embedding.
    one_graph: whether a compiled block's attention does not break its graph.
    """
    if config.tensor > 1:
        check_tensor_degree(lm, config.tensor)  # before a mesh of that degree is made
    mesh = make_mesh(config, world)
    blocks = lm.model.layers
    if config.tensor > 1:
        cut(lm, mesh["tensor"], sequence=config.sequence)
    for block in blocks:
        recompute_and_compile(block, config, one_graph=one_graph)
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
    # Embedding and final norm form the root's group, and with them a head of the same weights. A head of its own is a
    # group of its own: its gradient, 1.6 GB of bf16 at 32B, is reduced at once and not after the last block's. It is
    # read last in the forward and first in the backward, so that freeing it in between would gather it twice.
    if head is not None:
        fully_shard(head, **options, reshard_after_forward=False)
    fully_shard(root, **options)


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
