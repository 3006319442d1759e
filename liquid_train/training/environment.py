"""environment.json: the versions, the device and the commit that a run was trained with."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from liquid_train.distributed.parallelize import World


def environment(world: World) -> dict[str, Any]:
    """Versions, devices and the commit, for environment.json."""
    commit = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    names = ("torch", "transformers", "webdataset", "hydra-core", "numpy", "tokenizers", "safetensors", "wandb")
    device = (
        torch.cuda.get_device_name(world.device)
        if world.device.type == "cuda"
        else f"cpu ({platform.machine()}, {os.cpu_count()} cores)"
    )
    return {
        "python": platform.python_version(),
        **{n: version(n) for n in names},
        "platform": platform.platform(),
        "device": device,
        "ranks": world.size,
        "threads_per_rank": torch.get_num_threads(),
        "git_commit": commit or None,
        "command": " ".join(sys.argv),
    }
