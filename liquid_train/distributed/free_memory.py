"""Memory that a rank may still take."""

from __future__ import annotations

import os
from pathlib import Path

import torch

MEMINFO = Path("/proc/meminfo")


def free_bytes(device: torch.device) -> int:
    """On a GPU: what the driver has left and what torch has reserved and does not use. On a CPU: the rank's share of
    what the kernel says is available (cgroup limits are not looked at)."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    lines = MEMINFO.read_text().splitlines() if MEMINFO.exists() else []
    available = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), 2**62)
    return available // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
