"""Ranks, and how the model is shared out over them: settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BeforeValidator

from liquid_train.config.fields import Section, require, setting
from liquid_train.errors import UserError

OLD_NAMES = {"rectangles": "padded_sdpa"}  # parallel.attention in configs and checkpoints of before


@dataclass
class LaunchConfig(Section):
    """Processes on this machine, and on others."""

    nproc: Annotated[str, setting("their number, or auto: one a GPU, without a GPU launch.cpu_nproc")] = "auto"
    cpu_nproc: Annotated[int, setting("what auto means without a GPU", ge=1)] = 1
    nodes: Annotated[
        int, setting("machines, on each of which the same command is started, with the same nproc", ge=1, le=10**5)
    ] = 1
    rendezvous: Annotated[
        str | None, setting("HOST:PORT of one of the machines, where they meet", null="for one machine")
    ] = None
    restarts: Annotated[
        int, setting("how often all ranks start again, from the newest checkpoint, after one has died", ge=0, le=1000)
    ] = 0

    def check(self, key: str) -> None:
        n, meeting = self.nproc, self.rendezvous
        require(n == "auto" or (n.isdecimal() and int(n) > 0), f"{key}nproc={n}: a number of processes, or auto")
        require(
            self.nodes == 1 or meeting is not None,
            f"{key}nodes={self.nodes} needs {key}rendezvous=HOST:PORT, the same on all of them: a free port of one",
        )
        port = "" if meeting is None else meeting.rpartition(":")[2]
        require(
            meeting is None or (":" in meeting and port.isdecimal() and 0 < int(port) < 2**16),
            f"{key}rendezvous={meeting}: give HOST:PORT, such as node1:29400",
        )


@dataclass
class ParallelConfig(Section):
    """Device mesh and memory."""

    replicate: Annotated[
        int, setting("copies of the sharded model (HSDP); gradients are summed over them", ge=1, le=10**5)
    ] = 1
    shard: Annotated[
        int, setting("ranks that share weights and optimizer state (FSDP2); -1: all remaining ranks", ge=-1, le=10**5)
    ] = -1
    tensor: Annotated[
        int,
        setting(
            "ranks that share every matrix product (tensor parallelism), for layers too large for one rank",
            ge=1,
            le=1024,
        ),
    ] = 1
    sequence: Annotated[
        bool,
        setting(
            "with tensor: between the matrix products each rank keeps its part of every sequence (Megatron's sequence "
            "parallelism), which takes less memory"
        ),
    ] = True
    precision: Annotated[Literal["bf16", "fp32"], setting("of forward and backward; weights and state are fp32")] = (
        "bf16"
    )
    attention: Annotated[
        Literal["auto", "flash", "varlen", "flex", "padded_sdpa"],
        BeforeValidator(lambda value: OLD_NAMES.get(value, value) if isinstance(value, str) else value),
        setting("within documents; auto: the first of these that runs here"),
    ] = "auto"
    activation_checkpoint: Annotated[
        Literal["none", "selective", "full"],
        setting("what backward computes again: nothing, all but matrix products and attention, or every block"),
    ] = "none"
    compile: Annotated[bool, setting("torch.compile of every block")] = False
    cpu_offload: Annotated[
        bool, setting("weights and optimizer state wait in the host's memory: slow, the last resort")
    ] = False

    def check(self, key: str) -> None:
        require(self.shard != 0, f"{key}shard=0: must be 1 or more, or -1 for all remaining ranks")


def degrees(p: ParallelConfig, ranks: int) -> tuple[int, int, int]:
    """(replicate, shard, tensor) whose product is the number of ranks; UserError when there is none."""
    shard = p.shard if p.shard > 0 else ranks // max(1, p.replicate * p.tensor)
    if min(p.replicate, p.tensor, shard) < 1 or p.replicate * shard * p.tensor != ranks:
        given = f"parallel.replicate={p.replicate} x parallel.shard={p.shard} x parallel.tensor={p.tensor}"
        raise UserError(
            f"{given}: do not multiply to the {ranks} ranks (launch.nproc x machines); set parallel.shard=-1, and "
            f"degrees that divide {ranks}"
        )
    return p.replicate, shard, p.tensor


def all_processes(launch: LaunchConfig) -> int:
    """Ranks on all machines together."""
    return launch.nodes * processes(launch)


def processes(launch: LaunchConfig) -> int:
    """How many ranks to start here: launch.nproc, or one a GPU, else launch.cpu_nproc."""
    if launch.nproc != "auto":
        return int(launch.nproc)
    import torch

    return torch.cuda.device_count() or launch.cpu_nproc
