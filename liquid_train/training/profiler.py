"""train.profile_steps: time and memory of the operators of some steps.

RUN/profile/rank-N.trace.json    Chrome's trace format, for ui.perfetto.dev
RUN/profile/rank-N.operators.txt the operators that took longest
RUN/profile/rank-N.memory.pickle on CUDA: the allocator's history and state, for pytorch.org/memory_viz
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from liquid_train.distributed.parallelize import World

ROWS = 40  # of the table
ALLOCATIONS = 100_000  # that the snapshot's history holds


class StepProfile:
    """Profiles the steps [first, last] (1-based, both included) on every rank; None: no steps."""

    def __init__(self, steps: list[int] | None, run_dir: Path, world: World) -> None:
        self.first, self.last = steps or (0, 0)
        self.folder, self.world, self.cuda = run_dir / "profile", world, world.device.type == "cuda"
        self._profile: profile | None = None
        self._begun = 0  # the step that the current profile began with

    def warning(self, first: int, last: int) -> str | None:
        """A line where this process, which makes the steps `first` to `last`, cannot profile all that was asked for."""
        if self.last == 0 or first <= self.first <= self.last <= last:
            return None
        asked = f"train.profile_steps=[{self.first},{self.last}]"
        return f"{asked}: the steps {first} to {last} are made from here on; others are not profiled"

    def begin(self, step: int) -> None:
        """Before step `step`."""
        if not self.first <= step <= self.last or self._profile:
            return
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.cuda else [])]
        self._profile = profile(activities=activities, record_shapes=True, profile_memory=True)
        if self.cuda:
            torch.cuda.memory._record_memory_history(max_entries=ALLOCATIONS)
        self._profile.start()
        self._begun = step

    def end(self, step: int, over: bool = False) -> str | None:
        """After step `step`; over: it was the last. Returns a line for the log once the files are written, or could not
        be."""
        if self._profile is None or (step < self.last and not over):
            return None
        finished, self._profile = self._profile, None
        finished.stop()
        try:
            self._write(finished)
        except (OSError, RuntimeError) as error:  # the profiler's own writer raises the latter
            return f"{self.folder}: the profile could not be written ({error}). Training goes on."
        return (
            f"profile of the steps {self._begun} to {step}: {self.folder} (rank-N.trace.json opens in ui.perfetto.dev)"
        )

    def _write(self, finished: profile) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"rank-{self.world.rank}"
        if self.cuda:
            torch.cuda.memory._dump_snapshot(str(self.folder / f"{name}.memory.pickle"))
            torch.cuda.memory._record_memory_history(enabled=None)
        order = "self_device_time_total" if self.cuda else "self_cpu_time_total"
        (self.folder / f"{name}.operators.txt").write_text(finished.key_averages().table(sort_by=order, row_limit=ROWS))
        finished.export_chrome_trace(str(self.folder / f"{name}.trace.json"))
