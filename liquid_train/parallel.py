"""Processes, device mesh and sharding: one ordered function makes a meta model a sharded one."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from liquid_train.config import ParallelConfig
from liquid_train.loss import LossModule


@dataclass(frozen=True)
class World:
    """This process among the others."""

    rank: int
    size: int
    device: torch.device

    @property
    def main(self) -> bool:
        return self.rank == 0


@contextlib.contextmanager
def process_group() -> Iterator[World]:
    """Join the processes torchrun started, or stand alone as a group of one. NCCL where each rank has a GPU, else gloo."""
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local = int(os.environ.get("LOCAL_RANK", 0))
    cuda = torch.cuda.is_available() and local < torch.cuda.device_count()
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    if size > 1:
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield World(rank, size, device)
    finally:
        gc.collect()  # sharded tensors must be gone before the group is, or gloo aborts at exit
        dist.destroy_process_group()


def mesh(config: ParallelConfig, world: World) -> DeviceMesh:
    """replicate x shard mesh; ValueError when the degrees do not multiply to the number of ranks."""
    shard = config.shard if config.shard > 0 else world.size // max(1, config.replicate)
    if config.replicate < 1 or config.replicate * shard != world.size:
        raise ValueError(
            f"parallel.replicate={config.replicate} x parallel.shard={config.shard}: do not multiply to the {world.size} ranks; set parallel.shard=-1"
        )
    if config.replicate == 1:
        return init_device_mesh(world.device.type, (shard,), mesh_dim_names=("shard",))
    return init_device_mesh(world.device.type, (config.replicate, shard), mesh_dim_names=("replicate", "shard"))


def parallelize(root: LossModule, config: ParallelConfig, world: World) -> None:
    """Activation checkpointing, then compile, then FSDP2: each wraps what the one before made."""
    blocks = root.lm.model.layers
    if config.activation_checkpoint == "full":  # transformers' own switch keeps the parameters' names
        root.lm.gradient_checkpointing_enable({"use_reentrant": False})
    for block in blocks:
        if config.compile:
            block.compile()
    compute = torch.bfloat16 if config.precision == "bf16" else torch.float32
    # Weights stay fp32 in their shards; gathered copies are cast to the compute type; gradients are summed in fp32.
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32)
    shard_mesh = mesh(config, world)
    for block in blocks:
        fully_shard(block, mesh=shard_mesh, mp_policy=policy)
    # Embedding, final norm and head form the root's group: tied weights must not be split over two groups.
    fully_shard(root, mesh=shard_mesh, mp_policy=policy)


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
    """Free gathered parameters after a forward without a backward: the root keeps its own, and would show them in place of its shards."""
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
