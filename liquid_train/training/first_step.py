"""What a user sees of a process's first step, which may take minutes: it opens shards, compiles, and is logged only
once it is done."""

from __future__ import annotations

import logging
import threading
import time

from liquid_train.distributed.step_timer import StepTimer

log = logging.getLogger(__name__)

SECONDS = 20.0  # between two lines; what is done before the first needs none


class FirstStep:
    """A thread that logs every `seconds` how far the first step has come, and how long it will take, until `end`.

    Count a micro-batch with `begin`.
    """

    def __init__(self, timer: StepTimer, seconds: float = SECONDS) -> None:
        self.timer = timer
        self._begun, self._count, self._number = time.monotonic(), 0, 0
        self._first = self._begun  # when its first micro-batch began
        self._over = threading.Event()
        threading.Thread(target=self._report, args=(seconds,), name="first step", daemon=True).start()

    def begin(self, number: int, count: int) -> None:
        """Micro-batch `number`, from 0 on, of `count` begins."""
        if not number:
            self._first = time.monotonic()
        self._number, self._count = number, count

    def end(self) -> None:
        self._over.set()

    def _report(self, seconds: float) -> None:
        while not self._over.wait(seconds):
            log.info(self.describe())

    def describe(self) -> str:
        """'step 1 has taken 40 s so far: backward, micro-batch 2 of 16, about 320 s in all'."""
        now = time.monotonic()
        line = f"step {max(self.timer.step, 1)} has taken {now - self._begun:.0f} s so far: {self.timer.name}"
        if self._count > 1:
            line += f", micro-batch {self._number + 1} of {self._count}"
        if self._number:
            whole = self._first - self._begun + (now - self._first) / self._number * self._count
            line += f", about {whole:.0f} s in all"
        return line
