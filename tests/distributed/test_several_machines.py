"""Several machines, here two launchers on one: they meet, stop together, and start again after a rank has died."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from liquid_train.config.compose import load
from liquid_train.errors import UserError
from tests.distributed.running import descendants, launch, make_data, metrics, start, wait_for_step, without_timings

STEPS = 24
SAME = [
    "train.batch_digest=true",
    "train.deterministic=true",
    "data.workers=0",
    "checkpoint.every=4",
    "schedule=constant",
]
SAME += ["schedule.warmup=0"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("machines"))


@pytest.fixture(scope="module")
def whole(root: Path) -> list[dict[str, Any]]:
    """Two ranks on one machine."""
    done = launch(root, "whole", *SAME, f"train.steps={STEPS}", "launch.nproc=2")
    assert done.returncode == 0, done.stderr
    return without_timings(metrics(root / "whole"))


def meeting() -> list[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return ["launch.nodes=2", "launch.nproc=1", f"launch.rendezvous=localhost:{port}"]


def start_both(root: Path, run: str, *more: str) -> list[subprocess.Popen[str]]:
    together = [*SAME, *meeting(), *more]
    return [start(root, run, *together, stderr=subprocess.PIPE) for _ in range(2)]


def ended(machines: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    told = [machine.communicate(timeout=200)[1] for machine in machines]
    return [(machine.returncode, text) for machine, text in zip(machines, told, strict=True)]


def test_two_machines_train_stop_and_go_on_as_one(root: Path, whole: list[dict[str, Any]]) -> None:
    machines = start_both(root, "two", "train.steps=100000")
    wait_for_step(root / "two", 3, machines[0])
    machines[1].send_signal(signal.SIGUSR1)  # Slurm tells one machine, or all
    found = ended(machines)
    assert [status for status, _ in found] == [0, 0], found
    assert sum(text.count("the same command resumes") for _, text in found) == 1
    last = metrics(root / "two")[-1]["step"]
    if last >= STEPS:
        pytest.skip(f"stopped at step {last} only, on a very fast machine")
    assert [status for status, _ in ended(start_both(root, "two", f"train.steps={STEPS}"))] == [0, 0]
    lines = without_timings(metrics(root / "two"))
    assert [(m["step"], m["batch_digest"], m["loss"]) for m in lines] == [
        (m["step"], m["batch_digest"], m["loss"]) for m in whole
    ]


def test_all_ranks_start_again_after_one_has_died(root: Path, whole: list[dict[str, Any]]) -> None:
    """As often as launch.restarts says, from the newest checkpoint; each step is logged once."""
    usual = [*SAME, f"train.steps={STEPS}", "launch.nproc=2", "launch.restarts=1"]
    with start(root, "killed", *usual, stderr=subprocess.PIPE) as machine:
        wait_for_step(root / "killed", 6, machine)
        os.kill(last_rank(machine.pid), signal.SIGKILL)
        ((status, told),) = ended([machine])
    assert status == 0, told
    assert without_timings(metrics(root / "killed")) == whole


def last_rank(pid: int) -> int:
    """The process of a rank below a launcher."""
    for child in descendants(pid):
        environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        arguments = Path(f"/proc/{child}/cmdline").read_bytes()
        if b"LOCAL_RANK=1" in environment and b"liquid_train.train" in arguments:
            return child
    raise AssertionError("no rank there")


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["launch.nodes=2"], "launch.nodes=2 needs launch.rendezvous=HOST:PORT"),
        (["launch.rendezvous=node1"], "launch.rendezvous=node1: give HOST:PORT"),
        (["launch.rendezvous=node1:99999"], "launch.rendezvous=node1:99999: give HOST:PORT"),
    ],
)
def test_what_cannot_meet_is_told_before_it_waits(overrides: list[str], says: str) -> None:
    with pytest.raises(UserError) as refused:
        load("train", ["data.sources.a.path=set", "data.sources.a.task=text", "train.steps=1", *overrides])
    assert says in str(refused.value)
