"""The learning rate as a function of the step, and a decay that branches off a longer run."""

from __future__ import annotations

import math

import pytest

from liquid_train.optim.schedule import learning_rate
from liquid_train.optim.settings import ScheduleConfig


def test_learning_rates() -> None:
    cosine = [learning_rate(s, 100, 1.0, ScheduleConfig("cosine", warmup=0.1)) for s in range(100)]
    assert (
        cosine[0] == 0.1
        and max(cosine) == cosine[10] == 1.0
        and cosine[55] == pytest.approx(0.5)
        and cosine[99] < 0.001
    )
    wsd = [learning_rate(s, 100, 1.0, ScheduleConfig("wsd", warmup=0.1, decay=0.2, min_lr=0.1)) for s in range(100)]
    assert wsd[10] == wsd[79] == 1.0 and math.isclose(wsd[90], 0.55)
    assert learning_rate(99, 100, 2.0, ScheduleConfig("constant", warmup=0.1)) == 2.0


def test_a_decay_branches_off_a_longer_run() -> None:
    """Warmup and decay as numbers of steps: 100 steps and 400 steps are the same up to step 80."""
    schedule = ScheduleConfig(kind="wsd", warmup=10, decay=20)
    short, long = ([learning_rate(step, steps, 1.0, schedule) for step in range(steps)] for steps in (100, 400))
    assert short[:80] == long[:80] and short[9] == 1.0 and short[4] == 0.5
    assert short[80] == 1.0 and short[90] == pytest.approx(0.5) and short[99] == pytest.approx(0.05)
    assert long[80:380] == [1.0] * 300
    as_share = [learning_rate(step, 100, 1.0, ScheduleConfig(kind="wsd", warmup=0.1, decay=0.2)) for step in range(100)]
    assert as_share == short
