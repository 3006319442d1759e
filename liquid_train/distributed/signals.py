"""How a run is told to stop: by a signal, or by a file when the launcher stands in between. torch is not imported."""

from __future__ import annotations

import os
import signal
from typing import Any

STOP_FILE = "LIQUID_STOP_FILE"  # environment variable: the ranks save and leave once the file it names exists


class StopSignal:
    """Whether this rank has been told to stop: by SIGTERM, SIGUSR1 (Slurm's warning) or the launcher's file. Then the
    current step is finished, and all ranks save and leave."""

    def __init__(self) -> None:
        self._signalled = False
        self._file = os.environ.get(STOP_FILE)
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._note)

    @property
    def received(self) -> bool:
        return self._signalled or (self._file is not None and os.path.exists(self._file))

    def _note(self, *_: Any) -> None:
        self._signalled = True
