"""Which phase of a step this rank is in, and how long the phases take: for the log, the watchdog and the profiler."""

from __future__ import annotations

import time
from collections import deque

import torch
from torch.profiler import record_function

ON_DEVICE = ("forward", "backward", "optimizer")  # on CUDA their time is the device's
TIMED = ("data", *ON_DEVICE, "checkpoint", "evaluation")


class StepTimer:
    """A rank is in one phase at a time: first `start`, then those of TIMED with `logging` in between, at last `end`.

    A phase lasts until the next one is entered. CUDA runs behind the host, so the phases ON_DEVICE are timed there by
    events. Nothing waits for these: they are read once they have happened, so that a step's optimizer phase may be
    counted with the next step.
    """

    def __init__(self) -> None:
        self.name, self.step = "start", 0  # step: the number of the current one, as in metrics.jsonl
        self.steps_done = 0  # by this process
        self.entered = 0  # phases so far: stands still when the rank hangs
        self.since = time.monotonic()
        self.cuda = False
        self.total = dict.fromkeys(TIMED, 0.0)
        self._seconds = dict.fromkeys(TIMED, 0.0)  # since `take`
        self._events: deque[tuple[str, torch.cuda.Event, torch.cuda.Event]] = deque()
        self._begun: torch.cuda.Event | None = None
        self._label: record_function | None = None

    def __str__(self) -> str:
        return f"{self.name} of step {self.step}" if self.step else self.name

    def enter(self, name: str) -> None:
        """End the current phase and begin another."""
        now, event = time.monotonic(), None
        if self.cuda and (self._begun is not None or name in ON_DEVICE):
            event = torch.cuda.Event(enable_timing=True)
            event.record()
        if self._begun is not None and event is not None:
            self._events.append((self.name, self._begun, event))
        elif self.name in TIMED:
            self._seconds[self.name] += now - self.since
        if self._label is not None:
            self._label.__exit__(None, None, None)
        self._label = record_function(name)  # shows up in a profile
        self._label.__enter__()
        self._begun = event if name in ON_DEVICE else None
        self.name, self.since = name, now
        self.entered += 1

    def take(self) -> dict[str, float]:
        """{"time/<phase>": seconds} of the phases that have ended since the last call."""
        while self._events and self._events[0][2].query():
            name, begin, end = self._events.popleft()
            self._seconds[name] += begin.elapsed_time(end) / 1000
        found = {f"time/{name}": seconds for name, seconds in self._seconds.items()}
        for name, seconds in self._seconds.items():
            self.total[name] += seconds
            self._seconds[name] = 0.0
        return found

    def describe(self) -> str:
        """The time so far by phase: '12.3 s: forward 40.0%, backward 50.0%, ...'."""
        self.take()
        whole = max(sum(self.total.values()), 1e-9)
        shares = ", ".join(f"{name} {100 * seconds / whole:.1f}%" for name, seconds in self.total.items() if seconds)
        return f"{whole:.1f} s: {shares}"
