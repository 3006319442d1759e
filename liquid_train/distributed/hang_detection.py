"""Ends the process when a step hangs, after reporting which rank hangs where.

A collective that the other ranks never join does not return, and ignores signals too: torchrun would wait forever. So a
thread watches the phases of the steps. When no new one has begun for too long, it writes what it knows to stderr and to
RUN/hangs/rank-N.txt.
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
SLOW = 4  # factor on the usual limit, for those phases and for the first step, which compiles
SHOWN = 8  # at most so many other ranks are named in a message
# newer and older name of a variable; torch appends the rank's number to the path
TRACE_FILE = ("TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE")
TRACE_SIZE = ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE")
GLOO = re.compile(r"gloo/|Connection closed by peer|Connection reset by peer")
SOURCE = re.compile(r"^.*?\[\S+\.cc:\d+\] *")  # the line of gloo's source that raised the error


def collective_timeout(hang_timeout: float | None) -> timedelta | None:
    """When a collective fails by itself: later than the watchdog in any phase, so that the watchdog reports first.
    None: torch's own timeout."""
    return None if hang_timeout is None else timedelta(seconds=max(SLOW * hang_timeout + 60, 1800))


def prepare_flight_recorder(hangs: Path) -> None:
    """Have torch record its last collectives, and write them below `hangs` when one times out. To be called before the
    process group is made. Variables that the user has set are kept.
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
    """What a failed collective tells of the other ranks, in one line; None for any other error. gloo has no exception
    class of its own, so its message decides."""
    lines = [line for line in str(error).splitlines() if GLOO.search(line)]
    if not lines and not isinstance(error, dist.DistError):
        return None
    said = SOURCE.sub("", lines[-1]).split(". ")[0] if lines else " ".join(str(error).split())[:400]
    return f"another rank is gone, or cannot be reached: {said}"


class Watchdog:
    """Watches one rank while the block runs. timeout: seconds without a new phase; None: does not watch."""

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
        # counted in periods, not by the clock: a process that was suspended does not hang
        entered, quiet = -1, 0.0
        while not self._over.wait(self._period):
            quiet = quiet + self._period if self.timer.entered == entered else 0.0
            entered = self.timer.entered
            if quiet >= self._limit():
                self._end()

    def _end(self) -> None:
        """Report what is known, then end the process.

        Anywhere else os._exit would hide a failure. Here the failure has just been reported, and there is no other way
        out: the main thread is in a collective or a system call, where no exception and no signal handler reaches it.
        """
        assert self.timeout is not None
        # the file system or the store may hang too, and the other ranks need time for their own reports
        patience = min(10.0, self.timeout)
        begun = time.monotonic()
        reporter = threading.Thread(target=self._report, daemon=True)
        reporter.start()
        reporter.join(patience)
        time.sleep(max(0.0, begun + patience - time.monotonic()))
        os._exit(EXIT_STATUS)

    def _report(self) -> None:
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
        others = f"The other ranks, the ones furthest behind first:\n{others}" if others else ""
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
        """Write torch's record of the last collectives. Returns a phrase: where it is, and how to read it."""
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
