"""A first step that takes long says how far it has come."""

from __future__ import annotations

import logging
import time

import pytest

from liquid_train.distributed.step_timer import StepTimer
from liquid_train.training.first_step import FirstStep


def test_it_tells_how_far_it_is_and_how_long_it_will_take(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    timer = StepTimer()
    timer.step = 4
    timer.enter("data")
    first = FirstStep(timer, seconds=0.05)
    wait_for(caplog, "step 4 has taken 0 s so far: data")
    first.begin(0, 8)
    timer.enter("forward")
    wait_for(caplog, ": forward, micro-batch 1 of 8")
    time.sleep(0.6)
    first.begin(1, 8)
    wait_for(caplog, ": forward, micro-batch 2 of 8, about ")
    assert int(caplog.messages[-1].partition("about ")[2].split()[0]) >= 4, "eight times 0.6 s at least"
    first.end()
    time.sleep(0.2)
    said = len(caplog.messages)
    time.sleep(0.2)
    assert len(caplog.messages) == said


def wait_for(caplog: pytest.LogCaptureFixture, text: str) -> None:
    deadline = time.monotonic() + 20
    while not any(text in message for message in caplog.messages):
        assert time.monotonic() < deadline, caplog.messages
        time.sleep(0.01)
