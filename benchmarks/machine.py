"""What figures were measured on, in one line: a time without its machine says nothing."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch


def machine() -> str:
    """Processor, cores, GPU if there is one, threads of torch, versions."""
    cpuinfo = Path("/proc/cpuinfo")
    names = (
        [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        if cpuinfo.exists()
        else []
    )
    parts = [names[0] if names else platform.machine(), f"{os.cpu_count()} cores"]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return ", ".join(
        [
            *parts,
            f"{torch.get_num_threads()} thread(s) a process",
            f"torch {torch.__version__}",
            f"transformers {version('transformers')}",
        ]
    )
