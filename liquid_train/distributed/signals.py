"""How a run is told to stop: by a signal, by a file when the launcher stands in between, or by the launcher's death.
torch is not imported.

A rank that is told so finishes its step; then all ranks save and leave. One that waits for data does not finish the
step, because an outage of the storage may last for minutes: all ranks leave the step out.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

STOP_FILE = "LIQUID_STOP_FILE"  # environment variable: the ranks save and leave once the file it names exists
STOPS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)  # SIGUSR1 is Slurm's warning, SIGINT Ctrl-C
LOOK = 0.3  # seconds between two looks for the file
IMPATIENT = 2.0  # seconds after which Ctrl-C is a second one: `timeout` sends each signal twice at once
PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Interrupted(BaseException):
    """Raised in the main thread where it waits for data when this rank is told to stop. Not an Exception: what is
    tried again after any of those must not take this for an outage."""


class StopSignal:
    """Whether this rank has been told to stop. Takes the signals over from when it is made, in the main thread."""

    def __init__(self) -> None:
        self._noted: float | None = None  # when the first signal came, seconds of the monotonic clock
        self._waiting = False  # for data
        self._file = Path(os.environ[STOP_FILE]) if STOP_FILE in os.environ else None
        for number in STOPS:
            signal.signal(number, self._note)
        if self._file is not None:
            threading.Thread(target=self._watch, args=(self._file,), name="stop file", daemon=True).start()

    @property
    def received(self) -> bool:
        return self._noted is not None

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """In this context a signal raises Interrupted, also one that has come before."""
        self._waiting = True
        try:
            if self.received:
                raise Interrupted
            yield
        finally:
            self._waiting = False

    def _note(self, number: int, _: Any) -> None:
        now = time.monotonic()
        if self._noted is None:
            self._noted = now
            if self._file is not None:
                with contextlib.suppress(OSError):  # its folder has gone with the launcher
                    self._file.touch()  # the other ranks of this machine may wait for data
        elif number == signal.SIGINT and now - self._noted > IMPATIENT:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        if self._waiting:
            self._waiting = False
            raise Interrupted

    def _watch(self, file: Path) -> None:
        main = threading.main_thread().ident
        while not self.received:
            if file.exists() and main is not None:
                signal.pthread_kill(main, signal.SIGUSR1)  # in the main thread a signal ends a wait
            time.sleep(LOOK)


def signal_when_parent_ends(number: signal.Signals, parent: int | None = None) -> None:
    """Have the kernel send this process `number` once the process that started it has ended, however it ended.

    parent: its process id, where that is known: the parent may have ended before this call.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), number)


@contextlib.contextmanager
def stops_blocked() -> Iterator[None]:
    """Processes forked in this context ignore the signals until `ignore_stops`, and this one takes them at its end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_stops() -> None:
    """In a process that serves a rank or starts the ranks: a signal to the whole process group is the ranks' to
    obey."""
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
