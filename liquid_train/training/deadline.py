"""When a run's time is over: it saves and ends before, since a scheduler that kills it would lose the steps since the
last checkpoint."""

from __future__ import annotations

import os
import time

from liquid_train.errors import UserError

JOB_END = "SLURM_JOB_END_TIME"  # seconds since 1970, as Slurm gives it to every job with a time limit
MARGIN = 120.0  # seconds that are left for the save and the end of the processes
SHARE = 0.1  # of a limit that is short itself


class Deadline:
    """limit: seconds from now on, None for the end of the Slurm job, where there is one.

    Raises UserError for a Slurm job whose end is no number.
    """

    def __init__(self, limit: float | None) -> None:
        self._begun = time.time()
        self.end: float | None = None if limit is None else self._begun + limit
        given = os.environ.get(JOB_END)
        if limit is None and given:
            if not given.isdecimal():
                raise UserError(f"{JOB_END}={given}: not a time in seconds; give train.time_limit=SECONDS")
            self.end = float(given)
        self._slowest: float | None = None  # seconds of a step so far, with its evaluation and save

    def step_took(self, seconds: float) -> None:
        """A process's first step, which compiles, says nothing of the others."""
        self._slowest = 0.0 if self._slowest is None else max(self._slowest, seconds)

    @property
    def near(self) -> bool:
        """Whether one more step, and what may come with it, might leave too little time for a save."""
        if self.end is None:
            return False
        margin = min(MARGIN, SHARE * (self.end - self._begun))
        return time.time() + margin + (self._slowest or 0.0) >= self.end
