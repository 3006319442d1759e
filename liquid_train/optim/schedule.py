"""The learning rate as a function of the step."""

from __future__ import annotations

import math

from liquid_train.optim.settings import ScheduleConfig


def learning_rate(step: int, steps: int, peak: float, schedule: ScheduleConfig) -> float:
    """Learning rate of 0-based `step` out of `steps`: linear warmup, then cosine, constant, or constant with a linear
    decay at the end.

    The last is warmup-stable-decay (Hu et al. 2024, arXiv 2404.06395). With warmup and decay as numbers of steps, a
    longer run equals a shorter one up to where that began to decay, and a decay can branch off at any checkpoint.
    """
    warmup = steps_of(schedule.warmup, steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    floor = schedule.min_lr
    if schedule.kind == "constant":
        return peak
    if schedule.kind == "wsd":
        begin = steps - steps_of(schedule.decay, steps)
        share = 1.0 if step < begin else 1 - (step - begin) / max(1, steps - begin)
        return peak * (floor + (1 - floor) * share)
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def steps_of(length: float, steps: int) -> int:
    """Number of steps: `length` itself, or below 1 that share of `steps`."""
    return round(length if length >= 1 else length * steps)
