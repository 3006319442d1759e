"""A run told to stop saves and ends with 0, whatever process hears of it; without its launcher it ends by itself."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from liquid_train.checkpoint.folder import committed, step_of
from tests.distributed.running import (
    data_overrides,
    descendants,
    kill_all,
    make_data,
    metrics,
    ranks,
    start,
    wait_for_step,
)

LONG_RUN = ["train.steps=100000", "checkpoint.every=100000", "tracker.wandb.mode=disabled"]
SIGNALS = {"TERM": signal.SIGTERM, "USR1": signal.SIGUSR1, "INT": signal.SIGINT}
QUICK = {("INT", "launcher", 0), ("USR1", "rank", 1), ("TERM", "group", 2)}
MATRIX = [
    pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow)
    for case in itertools.product(SIGNALS, ("launcher", "rank", "group"), (0, 1, 2))
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("signals"))


def saved_step(run: Path) -> int:
    """Of the newest complete checkpoint, which must hold every step that was logged."""
    newest = step_of(committed(run)[-1])
    assert metrics(run)[-1]["step"] == newest
    return newest


@pytest.mark.parametrize(("name", "target", "workers"), MATRIX)
def test_a_signal_saves_and_ends_with_0(root: Path, name: str, target: str, workers: int) -> None:
    """group: every process that the command has started, loaders too, as a scheduler does it."""
    run = f"{name}-{target}-{workers}"
    process = start(root, run, *LONG_RUN, "launch.nproc=2", f"data.workers={workers}", stderr=subprocess.PIPE)
    try:
        wait_for_step(root / run, 3, process)
        told = {
            "launcher": [process.pid],
            "rank": [ranks(process)[1]],
            "group": [process.pid, *descendants(process.pid)],
        }[target]
        for pid in told:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, SIGNALS[name])
        _, err = process.communicate(timeout=120)
    finally:
        kill_all(process)
    assert process.returncode == 0, err
    assert f"stopped at step {saved_step(root / run)}; the same command resumes" in err and "Traceback" not in err


def test_without_their_launcher_ranks_save_and_end(root: Path) -> None:
    process = start(root, "orphans", *LONG_RUN, "launch.nproc=2", "data.workers=1")
    wait_for_step(root / "orphans", 3, process)
    started = descendants(process.pid)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 120
    while (alive := [pid for pid in started if runs(pid)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive and saved_step(root / "orphans") >= 3


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("workers", [0, 1])
def test_an_outage_of_the_data_does_not_keep_a_run_from_stopping(tmp_path: Path, workers: int) -> None:
    """The data would be waited for ten minutes; the whole test may take less."""
    make_data(tmp_path)
    sets = {Path(o.partition("=")[2]) for o in data_overrides(tmp_path) if "sources" in o and ".path=" in o}
    said = tmp_path / "said"
    with said.open("w") as file:
        more = ["launch.nproc=1", f"data.workers={workers}", "data.retry_seconds=600", "data.cache=null"]
        process = start(tmp_path, "run", *LONG_RUN, *more, stderr=file.fileno())
        try:
            wait_for_step(tmp_path / "run", 3, process)
            for folder in sets:
                shutil.move(folder, f"{folder}-away")
            deadline = time.monotonic() + 100
            while "cannot be read now" not in said.read_text() and time.monotonic() < deadline:
                time.sleep(0.1)
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=100)
        finally:
            kill_all(process)
    assert "cannot be read now" in said.read_text()
    assert process.returncode == 0 and saved_step(tmp_path / "run") >= 3, said.read_text()
