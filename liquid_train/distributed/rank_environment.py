"""RANK and WORLD_SIZE that are left over from another program, or that a pod's or a job's shell carries. Only the
standard library is imported."""

from __future__ import annotations

import os

NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
STORE = ("MASTER_ADDR", "MASTER_PORT")  # where ranks meet


def forget_leftover_ranks(*, launched: bool) -> str | None:
    """Remove the variables from the environment, unless torchrun has set them for this process. Returns a line that
    says so, None where nothing was removed.

    launched: another launcher may have set them for this process, which then names the place where the ranks meet.
    """
    left = [f"{name}={os.environ[name]}" for name in NUMBERS if name in os.environ]
    real = "TORCHELASTIC_RUN_ID" in os.environ or (launched and all(name in os.environ for name in STORE))
    if real or not left:
        return None
    for name in NUMBERS:
        os.environ.pop(name, None)
    why = f"no {' and '.join(STORE)}" if launched else "torchrun has not started this process"
    return f"{', '.join(left)} in the environment: ignored ({why})"
