"""Where a run's numbers go: metrics.jsonl (exact and complete), W&B (the same names), the terminal (progress)."""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import time
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from liquid_train.errors import UserError
from liquid_train.files import lines_of, write_synced
from liquid_train.logs import console
from liquid_train.training.settings import TrackerConfig
from liquid_train.training.wandb import WandbRun

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 15  # plain lines where there is no terminal to draw a bar on


class RunLock:
    """The exclusive right to write to a run folder. Raises UserError when another process has it. Released when the
    process ends, however it ends."""

    def __init__(self, run_dir: Path) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        self._file = open(run_dir / ".lock", "w")  # noqa: SIM115 - open as long as the run
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # per process: loader workers do not inherit it
        except OSError as error:
            raise UserError(
                f"run.dir={run_dir}: another process is training there; wait for it, or choose another run.dir"
            ) from error

    def release(self) -> None:
        self._file.close()


def drop_lines_after(path: Path, step: int) -> None:
    """Rewrite metrics.jsonl, atomically, without the lines of later steps and a line that a kill has cut."""
    if not path.exists():
        return
    kept = []
    for line in lines_of(path.read_text()):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (json.JSONDecodeError, KeyError):
            continue  # the last line of a killed process
    write_synced(path, "".join(line + "\n" for line in kept))


class Tracker:
    """Rank 0's record of the numbers. `write` takes a step's metrics; what is not finite is written as null."""

    def __init__(
        self, run_dir: Path, config: TrackerConfig, *, name: str, settings: dict[str, Any], first_step: int, steps: int
    ) -> None:
        self.path = run_dir / "metrics.jsonl"
        drop_lines_after(self.path, first_step)
        self._file = self.path.open("ab", buffering=0)
        self._pending = b""  # not written yet: the disk was full
        self._run_dir = run_dir
        self._steps = steps
        self._console = console()
        self._wandb = WandbRun(run_dir, config.wandb, name, settings)
        self._bar = self._start_bar(first_step) if config.progress and self._console.is_terminal else None
        self._quiet = not config.progress
        self._last_line = 0.0
        self._started, self._first = time.monotonic(), first_step

    def _start_bar(self, first_step: int) -> Progress:
        columns = (
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=24),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        bar = Progress(*columns, console=self._console)
        bar.start()
        bar.add_task("", total=self._steps, completed=first_step)
        return bar

    def write(self, metrics: dict[str, Any]) -> None:
        """Append one object to metrics.jsonl and W&B. What cannot be written for now is kept in memory and written
        later."""
        clean = {k: (None if isinstance(v, float) and not math.isfinite(v) else v) for k, v in metrics.items()}
        kept_back = bool(self._pending)
        self._pending += json.dumps(clean).encode() + b"\n"
        try:
            self._write_pending()
        except OSError as error:
            if not kept_back:
                log.warning(
                    f"{self.path}: {error.strerror}. Training goes on; the lines are kept in memory and written when "
                    "there is room."
                )
        self._wandb.log({k: v for k, v in clean.items() if k != "step"}, metrics["step"])

    def write_evaluation(self, metrics: dict[str, Any]) -> None:
        """`write`, and to W&B also the step's table of evals/ and its images of samples/."""
        self.write(metrics)
        step = metrics["step"]
        self._wandb.log_evaluation(self._run_dir / "evals", step, self._run_dir / "samples" / f"step-{step:08d}.png")

    def _write_pending(self) -> None:
        while self._pending:  # a full disk may take a part of a line; the rest is appended later
            self._pending = self._pending[self._file.write(self._pending) :]

    def show(self, metrics: dict[str, Any]) -> None:
        """Update the bar; without a terminal, print a line now and then."""
        step = metrics["step"]
        text = " ".join(f"{k.removeprefix('loss/')} {v:.3f}" for k, v in metrics.items() if k.startswith("loss/"))
        text = f"loss {metrics['loss']:.3f} ({text}) {metrics['tokens_per_second']:,.0f} tokens/s"
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, description=text)
        elif not self._quiet and (time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES or step == self._steps):
            self._last_line = time.monotonic()
            left = (self._last_line - self._started) / max(1, step - self._first) * (self._steps - step)
            log.info(f"step {step}/{self._steps} {text}, {left:.0f} s left")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        try:
            self._write_pending()
            os.fsync(self._file.fileno())
        except OSError as error:
            log.warning(f"{self.path}: {error.strerror}. Its last lines may be missing.")
        self._file.close()
        self._wandb.finish()
