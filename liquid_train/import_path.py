"""Which modules a process finds first. Only the standard library is imported."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def put_working_folder_last() -> None:
    """`python -m` puts the working folder before everything that is installed: a package called evals that lies there
    would be taken for ours. Modules of the user's own are still found, after the installed ones.

    Nothing is done where this program itself lies in the working folder.
    """
    here = os.getcwd()
    if sys.path and sys.path[0] in ("", here) and Path(__file__).resolve().parents[1] != Path(here).resolve():
        sys.path.append(sys.path.pop(0) or here)
