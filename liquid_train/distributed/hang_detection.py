"""A step that hangs ends the process, after it has been said which rank hangs where.

A collective whose other ranks never come does not return, and does not listen to signals either: torchrun would wait
for ever. So a thread watches the phases go by, and when none has begun for too long it writes what it knows to stderr
and to RUN/hangs/rank-N.txt.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from liquid_train.distributed.heartbeat import HOST, Heartbeat
from liquid_train.distributed.step_timer import StepTimer

EXIT_STATUS = 3
SLOW_PHASES = ("start", "checkpoint", "evaluation", "end")
SLOW = 4  # times the usual limit, for those and for the first step, which compiles
SHOWN = 8  # other ranks that a message names at most
# newer and older name; a rank's number is appended
TRACE_FILE = ("TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE")
TRACE_SIZE = ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE")
GLOO = re.compile(r"gloo/|Connection closed by peer|Connection reset by peer")
SOURCE = re.compile(r"^.*?\[\S+\.cc:\d+\] *")  # where in gloo an error was raised


def collective_timeout(hang_timeout: float | None) -> timedelta | None:
    """After which a collective fails by itself: later than the watchdog in any phase, so that it is the one that
    speaks. None: torch's own."""
    return None if hang_timeout is None else timedelta(seconds=max(SLOW * hang_timeout + 60, 1800))


def prepare_flight_recorder(hangs: Path) -> None:
    """Have torch keep its last collectives, and write them below `hangs` when one times out; before the process group
    is made.

    What the user has set stays.
    """
    for names, value in (
        (TRACE_FILE, str(hangs / "collectives-rank-")),
        (TRACE_SIZE, "2000"),
        (("TORCH_NCCL_DUMP_ON_TIMEOUT",), "1"),
    ):
        if not any(name in os.environ for name in names):
            os.environ.update(dict.fromkeys(names[:1], value))
    if torch.cuda.is_available():
        hangs.mkdir(parents=True, exist_ok=True)  # NCCL's own thread makes no folder


def lost_peer(error: BaseException) -> str | None:
    """In one line what a failed collective says of the other ranks; None for another kind of error. gloo has no
    exception of its own."""
    lines = [line for line in str(error).splitlines() if GLOO.search(line)]
    if not lines and not isinstance(error, dist.DistError):
        return None
    said = SOURCE.sub("", lines[-1]).split(". ")[0] if lines else " ".join(str(error).split())[:400]
    return f"another rank is gone, or cannot be reached: {said}"


class Watchdog:
    """Watches over one rank while the block lasts. timeout: seconds without a new phase; None: it does not watch."""

    def __init__(self, timer: StepTimer, timeout: float | None, hangs: Path) -> None:
        self.timer, self.timeout, self.hangs = timer, timeout, hangs
        self.rank = int(os.environ.get("RANK", 0))
        self._over = threading.Event()
        self._main = threading.get_ident()

    def __enter__(self) -> Watchdog:
        if self.timeout is not None:
            self._period = min(5.0, self.timeout / 10)
            self._heartbeat = Heartbeat(self.timer, self._period)
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._over.set()
        if self.timeout is not None:
            self._heartbeat.stop()

    def _limit(self) -> float:
        assert self.timeout is not None
        slow = self.timer.name in SLOW_PHASES or not self.timer.steps_done
        return SLOW * self.timeout if slow else self.timeout

    def _watch(self) -> None:
        # counted in periods, not by the clock: a process that was stopped as a whole does not hang
        entered, quiet = -1, 0.0
        while not self._over.wait(self._period):
            quiet = quiet + self._period if self.timer.entered == entered else 0.0
            entered = self.timer.entered
            if quiet >= self._limit():
                self._end()

    def _end(self) -> None:
        """Say what is known, then end the process.

        os._exit would hide a failure anywhere else. Here the failure has just been told, and there is no other way out:
        the main thread sits in a collective or a system call, where no exception and no signal's handler reaches it.
        """
        assert self.timeout is not None
        # the file system or the store may hang too; and other ranks have something to say as well
        patience = min(10.0, self.timeout)
        begun = time.monotonic()
        teller = threading.Thread(target=self._tell, daemon=True)
        teller.start()
        teller.join(patience)
        time.sleep(max(0.0, begun + patience - time.monotonic()))
        os._exit(EXIT_STATUS)

    def _tell(self) -> None:
        timer, file = self.timer, self.hangs / f"rank-{self.rank}.txt"
        seconds = time.monotonic() - timer.since
        head = (
            f"liquid train: rank {self.rank} on {HOST} hangs in {timer}: nothing has moved for {seconds:.0f} s "
            f"(train.hang_timeout={self.timeout:g}). The process ends; the same command goes on from the newest "
            "checkpoint."
        )
        frame = sys._current_frames().get(self._main)
        stack = "".join(traceback.format_stack(frame)) if frame else ""
        self._print(f"{head}\n{stack}")
        others = "".join(f"  {sign}\n" for sign in self._heartbeat.others()[:SHOWN])
        others = f"The other ranks, those furthest after first:\n{others}" if others else ""
        try:
            self.hangs.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {head}\n{others}{stack}")
            kept = f"{file} has this"
        except OSError as error:
            kept = f"{file}: {error.strerror}"
        self._print(f"{others}{kept}; {self._dump_collectives()}\n")

    def _print(self, text: str) -> None:
        os.write(2, text.encode())  # the main thread may hold the lock of sys.stderr

    def _dump_collectives(self) -> str:
        """Write torch's record of the last collectives. Returns where it is, and how it is read."""
        path = Path(next(os.environ[name] for name in TRACE_FILE if name in os.environ) + str(self.rank))
        c10d: Any = torch._C._distributed_c10d
        dump = (
            getattr(c10d, "_dump_nccl_trace", None)
            if torch.cuda.is_available()
            else getattr(c10d, "_dump_fr_trace", None)
        )
        if dump is None:
            return "this torch keeps no record of collectives"
        try:
            path.write_bytes(dump())
        except (OSError, RuntimeError) as error:
            return f"its last collectives could not be written: {error}"
        return (
            f"its last collectives are in {path} (torchfrtrace -p {path.name.removesuffix(str(self.rank))} "
            f"{path.parent})"
        )
