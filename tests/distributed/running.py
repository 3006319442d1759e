"""Training through the command line on a small mixture of its own, for the tests that start real ranks."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests import forked
from tests.shard_sets import mixture_overrides

TIMINGS = {"tokens_per_second", "mfu", "data_wait_fraction", "memory_gib"}
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}


def make_data(root: Path) -> Path:
    """Shard sets below `root`, and the overrides that name them."""
    (root / "overrides.json").write_text(json.dumps(mixture_overrides(root)))
    return root


def data_overrides(root: Path) -> list[str]:
    return json.loads((root / "overrides.json").read_text())


def arguments(root: Path, run: str, *overrides: str) -> list[str]:
    """What follows `liquid train`."""
    return [
        "experiment=quickstart",
        *data_overrides(root),
        "evals.every=0",
        f"run.dir={root / run}",
        *overrides,
    ]


def command(root: Path, run: str, *overrides: str) -> list[str]:
    return [sys.executable, "-m", "liquid_train.cli", "train", *arguments(root, run, *overrides)]


def ranks_asked_for(overrides: tuple[str, ...]) -> int | None:
    """launch.nproc, as far as a number is given."""
    given = [o.removeprefix("launch.nproc=") for o in overrides if o.startswith("launch.nproc=")]
    return int(given[-1]) if given and given[-1].isdigit() else None


def attempt(root: Path, run: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    """`liquid train`: a single rank is forked, several are started by the command as a user starts it."""
    if ranks_asked_for(overrides) == 1:
        return forked.liquid("train", *arguments(root, run, *overrides), env=ENV)
    return launch(root, run, *overrides)


def launch(root: Path, run: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    """The command as a user starts it, in a new interpreter, and torchrun where there are several ranks."""
    return subprocess.run(command(root, run, *overrides), env=ENV, capture_output=True, text=True, timeout=280)


def without_launcher(root: Path, run: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    """The ranks that torchrun starts for the command, without torchrun: the exit status of one that failed, if any, and
    what all of them printed."""
    ranks = ranks_asked_for(overrides)
    if ranks is None or ranks == 1:
        return attempt(root, run, *overrides)
    with start_ranks(root, run, *overrides) as started:
        ended = started.wait()
    out, err = "".join(d.stdout for d in ended), "".join(d.stderr for d in ended)
    # those that waited for one that failed were killed: -9
    status = max((d.returncode for d in ended if d.returncode), default=0)
    return subprocess.CompletedProcess([], status, out, err)


def train(root: Path, run: str, *overrides: str) -> list[dict[str, Any]]:
    """A run that must succeed: its metrics. Its ranks are those of torchrun, without torchrun (tests/forked.py)."""
    done = without_launcher(root, run, *overrides)
    assert done.returncode == 0, done.stderr
    return metrics(root / run)


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def without_timings(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in TIMINGS and not k.startswith("time/")} for line in lines]


def start(root: Path, run: str, *overrides: str, stderr: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
    """The command in a session of its own, so that it can be killed with everything it started."""
    return subprocess.Popen(command(root, run, *overrides), env=ENV, stderr=stderr, text=True, start_new_session=True)


def start_ranks(root: Path, run: str, *overrides: str) -> forked.Together:
    """The ranks that torchrun starts for the command, without it: `kill` ends them with everything they started."""
    ranks = ranks_asked_for(overrides)
    assert ranks is not None
    return forked.start_ranks(arguments(root, run, *overrides), ranks, env=ENV)


def wait_for_step(run: Path, step: int, process: subprocess.Popen[str] | forked.Together) -> None:
    """Until `step` is logged; an error when the process ends before."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").read_text().count("\n") >= step:
            return
        time.sleep(0.02)
    raise AssertionError(f"step {step} was not reached (exit status {process.poll()})")


def kill_all(process: subprocess.Popen[str]) -> None:
    """kill -9 of the command, of torchrun, of its ranks, which have sessions of their own, and of their loaders; waits
    until they are gone."""
    sessions = {process.pid, *(os.getsid(pid) for pid in descendants(process.pid))}
    while alive := [pid for pid, session, state in _processes() if session in sessions and state != "Z"]:
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    process.wait()


def descendants(pid: int) -> list[int]:
    listed = subprocess.run(
        ["ps", "-e", "-o", "pid=,ppid="], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    children: dict[int, list[int]] = {}
    for child, parent in (map(int, line.split()) for line in listed):
        children.setdefault(parent, []).append(child)
    found = [pid]
    for one in found:
        found.extend(children.get(one, ()))
    return found[1:]


def ranks(process: subprocess.Popen[str]) -> dict[int, int]:
    """Process id of every rank that torchrun has started for the command."""
    found: dict[int, int] = {}
    for pid in descendants(process.pid):
        with contextlib.suppress(OSError):
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            # a rank's loaders have its environment, and come after it
            found = {int(entry[5:]): pid for entry in environment if entry.startswith(b"RANK=")} | found
    return found


def _processes() -> list[tuple[int, int, str]]:
    """(process id, session, state) of everything that runs here."""
    listed = subprocess.run(
        ["ps", "-e", "-o", "pid=,sid=,state="], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return [(int(pid), int(session), state) for pid, session, state in (line.split() for line in listed)]
