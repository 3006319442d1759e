"""Messages: their form, the level, and that a progress bar is not torn."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from liquid_train import logs
from liquid_train.cli import main

log = logging.getLogger("liquid_train.some.module")


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    logs.set_up()


def test_time_and_text_and_level_where_it_matters(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up()
    log.info("step 3: %s", "[red]loss[/red]")
    log.warning("left out")
    log.debug("not shown")
    logging.getLogger("somebody.else").info("not shown")
    logging.getLogger("somebody.else").warning("careful")
    out, err = capsys.readouterr()
    assert not out and re.fullmatch(
        r"(\d\d:\d\d:\d\d) step 3: \[red\]loss\[/red\]\n\S+ WARNING: left out\n\S+ WARNING: careful\n", err
    )


@pytest.mark.parametrize(("level", "shown"), [("debug", 4), ("INFO", 3), ("warning", 2), ("error", 1)])
def test_the_level(level: str, shown: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv(logs.LEVEL, level)
    for wish in (None, level):
        logs.set_up(wish)
        for number in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
            log.log(number, "x")
        assert len(capsys.readouterr().err.splitlines()) == shown


def test_an_unknown_level_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv(logs.LEVEL, "loud")
    assert main(["run", "list"]) == 2
    assert "LIQUID_LOG_LEVEL=loud: one of debug, info, warning, error" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rank", "world", "expected"),
    [
        ("0", "1", ["a", "WARNING: b"]),
        ("0", "2", ["a", "rank 0 WARNING: b"]),
        ("1", "2", ["rank 1: a", "rank 1 WARNING: b"]),
    ],
)
def test_the_rank(
    rank: str, world: str, expected: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world)
    logs.set_up()
    log.info("a")
    log.warning("b")
    assert [line[9:] for line in capsys.readouterr().err.splitlines()] == expected


def test_a_bar_and_messages_share_a_terminal() -> None:
    """On a terminal of its own: every message is a whole line of it, above the bar."""
    code = """
import logging, os, time
from liquid_train import logs
from liquid_train.generate.job import progress_bar
logs.set_up()
log = logging.getLogger("liquid_train.x")
with progress_bar() as bar:
    task = bar.add_task("codes", total=3)
    for n in range(3):
        bar.update(task, completed=n)
        bar.refresh()
        log.info("message %d", n)
        if os.fork() == 0:  # a data loader's worker
            log.warning("from a worker")
            os._exit(0)
        os.wait()
"""
    controller, terminal = os.openpty()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "TERM": "xterm", "COLUMNS": "100"}
    done = subprocess.run([sys.executable, "-c", code], stderr=terminal, env=environment, timeout=60, check=True)
    os.close(terminal)
    text = b""
    while True:
        try:
            text += os.read(controller, 65536)
        except OSError:
            break
    os.close(controller)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.decode()).replace("\r", "\n")
    assert done.returncode == 0 and "codes" in plain
    lines = [line.strip() for line in plain.splitlines() if "message" in line]
    assert [line[9:] for line in lines] == ["message 0", "message 1", "message 2"], plain
    assert plain.count("from a worker") == 3
