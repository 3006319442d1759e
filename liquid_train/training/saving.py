"""When training saves a checkpoint, what it waits for, and what it reports when one could not be written."""

from __future__ import annotations

import logging
import time

from liquid_train.checkpoint import state as train_state
from liquid_train.training.tracker import Tracker
from liquid_train.training.trainer import Run

log = logging.getLogger(__name__)


def start_save(run: Run) -> None:
    """Begin to write a checkpoint of this step; a collective."""
    copied = run.config.checkpoint.async_save
    run.saver.start(
        train_state.snapshot(
            run.root, run.optimizer, run.progress, run.config, run.card, run.vocabulary, run.world, copied=copied
        )
    )


def save_and_wait(run: Run, tracker: Tracker | None) -> None:
    """Save a checkpoint, unless that of this step is there already; SaveFailed on all ranks when it cannot be
    written."""
    run.timer.enter("checkpoint")
    settle_save(run, tracker)
    if run.saver.saved_step != run.progress.step:
        start_save(run)
        run.saver.settle()


def save_and_go_on(run: Run, tracker: Tracker | None) -> None:
    """Save a checkpoint next to the next steps, once the one before is written."""
    run.timer.enter("checkpoint")
    started = time.perf_counter()
    settle_save(run, tracker)
    start_save(run)
    run.stalled = time.perf_counter() - started


def settle_save(run: Run, tracker: Tracker | None) -> None:
    """Wait for the current save, if there is one, and log how it ended; where it failed, there may be room again at the
    next one."""
    level = logging.INFO
    try:
        written = run.saver.settle()
    except train_state.SaveFailed as error:
        every = run.config.checkpoint.every
        again = min(max(-(-run.progress.step // every), run.saver.step // every + 1) * every, run.steps)
        level, message = logging.WARNING, f"{error}. Training goes on; the next checkpoint is tried at step {again}."
    else:
        if written is None:
            return
        message = (
            f"checkpoint of step {written[0]}: training stood still for {run.stalled:.2f} s, written in "
            f"{written[1]:.1f} s"
        )
    if tracker:
        log.log(level, message)
