"""Evaluation in the middle of training: the live model measured, the numbers logged, the best checkpoint noted."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

from liquid_train.checkpoint import folder as checkpoint
from liquid_train.config.schema import TrainJob
from liquid_train.data.tasks import find_task
from liquid_train.distributed.parallelize import compute_dtype
from liquid_train.generate.live_model import live_model
from liquid_train.report.metric_families import headline
from liquid_train.training.heldout import log_heldout
from liquid_train.training.tracker import Tracker
from liquid_train.training.trainer import Run


def evaluate_now(run: Run, last: bool) -> dict[str, Any]:
    """Held-out loss and what evals/periodic.py measures, everything at the last step; a collective of all ranks."""
    from evals.periodic import evaluate

    assert run.heldout is not None
    metrics = log_heldout(
        run.root, run.heldout, run.world, run.progress.step, run.dir, compute_dtype(run.config.parallel)
    )
    # nothing to be guided away from
    settings = run.config.evals if run.card.null_prompt else replace(run.config.evals, guidance=1.0)
    with live_model(run.root, run.root.lm, run.world.device) as model:
        metrics |= evaluate(
            model,
            run.vocabulary,
            run.image_tokenizer,
            settings,
            sets=heldout_images(run.config),
            grid=tuple(run.card.grid),
            prompt=run.card.prompt,
            step=run.progress.step,
            out_dir=run.dir,
            rank=run.world.rank,
            world_size=run.world.size,
            last=last,
            multiratio=run.card.sizes,
        )
    return metrics


def heldout_images(config: TrainJob) -> str | None:
    """Path of the held-out set whose questions are asked while training."""
    asked = (
        source.path
        for name, source in config.data.heldout.items()
        if find_task(source.task, f"data.heldout.{name}.task").asks_questions
    )
    return next(asked, None)


def log_evaluation(run: Run, tracker: Tracker | None, last: bool) -> None:
    run.timer.enter("evaluation")
    started, step = time.perf_counter(), run.progress.step
    found = evaluate_now(run, last)
    if tracker:
        tracker.write_evaluation({"step": step, **found})
        tracker.say(f"step {step}: {headline(found)}, in {time.perf_counter() - started:.1f} s")
        if run.config.checkpoint.best is not None:
            note_score(run, tracker, found, run.config.checkpoint.best)


def note_score(run: Run, tracker: Tracker, found: dict[str, Any], metric: str) -> None:
    """By which the best checkpoint is kept; where it cannot be noted, say so and train on."""
    step, value = run.progress.step, found.get(metric, math.nan)
    if not math.isfinite(value):
        tracker.say(f"step {step} has no score: checkpoint.best={metric} was not measured, or is not a number")
        return
    try:
        checkpoint.note_score(run.dir, step, metric, run.config.checkpoint.best_is, value)
    except OSError as error:
        tracker.say(
            f"step {step}: its score could not be noted ({error}). Training goes on; the best checkpoint is then one "
            "of the others."
        )
