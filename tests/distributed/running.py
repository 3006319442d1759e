"""Training through the command line on a small mixture of its own, for the tests that start real ranks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.shard_sets import mixture_overrides

TIMINGS = {"tokens_per_second", "mfu", "data_wait_fraction", "memory_gib"}
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}


def make_data(root: Path) -> Path:
    """Shard sets below `root`, and the overrides that name them."""
    (root / "overrides.json").write_text(json.dumps(mixture_overrides(root)))
    return root


def data_overrides(root: Path) -> list[str]:
    return json.loads((root / "overrides.json").read_text())


def command(root: Path, run: str, *overrides: str) -> list[str]:
    return [
        sys.executable, "-m", "liquid_train.cli", "train", "experiment=quickstart", *data_overrides(root), "evals.every=0", f"run.dir={root / run}", *overrides,
    ]  # fmt: skip


def attempt(root: Path, run: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(root, run, *overrides), env=ENV, capture_output=True, text=True, timeout=280)


def train(root: Path, run: str, *overrides: str) -> list[dict[str, Any]]:
    """A run that must succeed: its metrics."""
    done = attempt(root, run, *overrides)
    assert done.returncode == 0, done.stderr
    return metrics(root / run)


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def without_timings(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in TIMINGS} for line in lines]


def start(root: Path, run: str, *overrides: str, stderr: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
    """The command in a session of its own, so that it can be killed with everything it started."""
    return subprocess.Popen(command(root, run, *overrides), env=ENV, stderr=stderr, text=True, start_new_session=True)


def wait_for_step(run: Path, step: int, process: subprocess.Popen[str]) -> None:
    """Until `step` is logged; an error when the process ends before."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").read_text().count("\n") >= step:
            return
        time.sleep(0.02)
    raise AssertionError(f"step {step} was not reached (exit status {process.poll()})")


def kill_all(run: Path, process: subprocess.Popen[str]) -> None:
    """kill -9 of the command, of torchrun, and of its ranks, which have sessions of their own; waits until they are gone."""
    os.killpg(process.pid, signal.SIGKILL)
    subprocess.run(["pkill", "-9", "-f", f"run.dir={run}( |$)"], check=False)
    process.wait()
    while subprocess.run(["pgrep", "-f", f"run.dir={run}( |$)"], check=False, stdout=subprocess.DEVNULL).returncode == 0:
        time.sleep(0.05)
