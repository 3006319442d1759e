"""Ranks and how the model is shared out over them: settings."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class LaunchConfig:
    nproc: str = "auto"  # processes on this machine: a number, or auto = one a GPU, else cpu_nproc
    cpu_nproc: int = 1  # what auto means without a GPU


@dataclass
class ParallelConfig:
    replicate: int = 1  # copies of the sharded model (HSDP): gradients are summed over them
    shard: int = -1  # ranks that share weights and optimizer state (FSDP2); -1 = all remaining ranks
    # ranks that share every matrix product (tensor parallelism): for models whose layers are too large for one
    tensor: int = 1
    precision: str = "bf16"  # bf16 or fp32
    # within documents: flash, varlen, flex, padded_sdpa, or auto = the first of these that runs here
    attention: str = "auto"
    activation_checkpoint: str = "none"  # none, selective (keeps matrix products and attention) or full
    compile: bool = False
    cpu_offload: bool = False  # weights and optimizer state wait in the host's memory: slow, the last resort
