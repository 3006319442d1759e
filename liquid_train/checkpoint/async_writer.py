"""Checkpoints written in the background: on each rank a thread writes a copy of the state while training continues."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch.distributed as dist

from liquid_train.checkpoint.settings import CheckpointConfig
from liquid_train.checkpoint.state import SaveFailed, Snapshot, write_checkpoint


class Saver:
    """Writes the checkpoints of a run, one at a time. All ranks call the same methods at the same steps.

    step: of the current or last save. saved_step: of the newest checkpoint known to be complete; 0: none.
    """

    def __init__(self, run_dir: Path, settings: CheckpointConfig, saved_step: int) -> None:
        """A collective of all ranks."""
        self.saved_step = saved_step
        self._run_dir, self._settings = run_dir, settings
        # its own group: the threads' collectives must not mix with those of training
        self._group = dist.new_group(backend="gloo")
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[float] | None = None
        self.step = 0

    def start(self, state: Snapshot) -> None:
        """Begin to write (without checkpoint.async_save: write). The save before must have been settled."""
        assert self._writing is None
        self.step = state.step
        if self._settings.async_save:
            self._writing = self._threads.submit(self._write, state)
            return
        self._writing = Future()
        try:
            self._writing.set_result(self._write(state))
        except SaveFailed as error:
            self._writing.set_exception(error)

    def ended(self) -> bool:
        """Whether a save has ended that was not settled yet."""
        return self._writing is not None and self._writing.done()

    def settle(self) -> tuple[int, float] | None:
        """Wait for the current save: (its step, seconds it took to write), or None where there is none. Raises
        SaveFailed, on all ranks, where it failed."""
        if self._writing is None:
            return None
        writing, self._writing = self._writing, None
        seconds = writing.result()
        self.saved_step = self.step
        return self.step, seconds

    def close(self) -> None:
        """Wait until nothing is written any more."""
        self._threads.shutdown()
        self._writing = None

    def _write(self, state: Snapshot) -> float:
        started = time.perf_counter()
        write_checkpoint(state, self._run_dir, self._settings, self._group)
        return time.perf_counter() - started
