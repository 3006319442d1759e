"""The `liquid` command in a process of its own (tests/forked.py), in a folder of the test's, with modules of a user's
own on its path."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests import forked
from tests.distributed.running import ENV


def liquid(cwd: Path, *arguments: str, own: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `liquid ARGUMENTS` in `cwd`. own: a folder whose modules it can import, next to the program's."""
    environment = ENV if own is None else {**ENV, "PYTHONPATH": os.pathsep.join([ENV["PYTHONPATH"], str(own)])}
    return forked.liquid(*arguments, cwd=cwd, env=environment)
