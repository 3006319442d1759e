"""An error of one rank, or of all: told once, by the rank that has it, and the launcher names the rank that failed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from liquid_train.distributed.heartbeat import HOST
from tests.distributed.running import ENV, command, make_data

# a rank of its own kind: FAULT says what becomes of rank 1, or of all ranks
RANKS = """
import os, signal, sys
from liquid_train import train
fault, arguments = os.environ["FAULT"], sys.argv[1:]
def broken(*_):
    raise KeyError("a bug")
if fault == "all":
    arguments.append("train.steps=0")
elif fault == "bug of all":
    train.Trainer._forward_backward = broken
elif os.environ["RANK"] == "1":
    if fault == "config":  # before there is a process group
        arguments.append("train.stpes=5")
    elif fault == "data":  # after it; rank 0 is in a collective by then
        arguments.append("++data.sources.text.path=nowhere")
    elif fault == "bug":
        train.Trainer._forward_backward = broken
    elif fault == "memory":
        train.Trainer._forward_backward = lambda *_: train.torch.empty(2**50)
    elif fault == "killed":
        train.Trainer._forward_backward = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
sys.exit(train.main(arguments))
"""
LAUNCH = "import sys; from liquid_train.launcher import supervise; sys.exit(supervise([sys.executable, *sys.argv[1:]]))"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_data(tmp_path_factory.mktemp("rank-errors"))
    (folder / "ranks.py").write_text(RANKS)
    return folder


def run(root: Path, fault: str, module: str = "liquid_train.torchrun") -> subprocess.CompletedProcess[str]:
    """Two ranks under our launcher, or under torchrun itself."""
    overrides = command(root, fault, "train.steps=3", "tracker.wandb.mode=disabled", "tracker.progress=false")
    overrides = [o if o.startswith(("experiment", "run.", "evals.every", "~")) else f"++{o}" for o in overrides[4:]]
    torchrun = [
        "-m",
        module,
        "--standalone",
        "--nproc-per-node=2",
        "--shutdown-timeout=3",
        str(root / "ranks.py"),
        *overrides,
    ]
    launcher = [sys.executable, "-c", LAUNCH] if module == "liquid_train.torchrun" else [sys.executable]
    env = {**ENV, "FAULT": fault}
    return subprocess.run([*launcher, *torchrun], env=env, capture_output=True, text=True, timeout=120)


def lines(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if line.startswith("liquid train: ")]


MISTAKES = {
    "config": "rank 1: train.stpes: no such key; did you mean train.steps?",
    "data": "rank 1: data.sources.text.path=nowhere: nowhere: no such folder",
}


@pytest.mark.parametrize("fault", ["config", pytest.param("data", marks=pytest.mark.slow)])
def test_a_mistake_of_rank_1_is_told_with_its_number(root: Path, fault: str) -> None:
    done = run(root, fault)
    said = lines(done)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert len(said) == 2 and said[0].startswith(f"liquid train: {MISTAKES[fault]}"), done.stderr
    assert said[1] == f"liquid train: rank 1 on {HOST} ended with exit code 2 (its message is above)"


def test_a_rank_without_memory_says_what_to_lower(root: Path) -> None:
    done = run(root, "memory")
    said = lines(done)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert said[0].startswith("liquid train: rank 1: out of memory (forward of step 1, tried to allocate "), said
    assert "lower train.micro_batch" in said[0] and f"rank 1 on {HOST} ended with exit code 2" in said[-1]


def test_a_mistake_of_all_ranks_is_told_once(root: Path) -> None:
    done = run(root, "all")
    said = lines(done)
    assert done.returncode == 2 and len(said) == 2 and len(done.stderr.splitlines()) == 2, done.stderr
    assert said[0].startswith("liquid train: train.steps=0: must be 1 or more") and " ended with exit code 2" in said[1]


def test_a_bug_of_rank_1_keeps_its_traceback(root: Path) -> None:
    done = run(root, "bug")
    assert done.returncode == 1 and done.stderr.count("Traceback (most recent call last)") == 1, done.stderr
    assert f"liquid train: rank 1 on {HOST}: KeyError, its traceback:\nTraceback" in done.stderr
    assert "KeyError: 'a bug'" in done.stderr and "in broken" in done.stderr
    assert done.stderr.endswith(f"liquid train: rank 1 on {HOST} ended with exit code 1 (its message is above)\n")


@pytest.mark.slow
def test_a_bug_of_all_ranks_is_shown_by_each(root: Path) -> None:
    done = run(root, "bug of all")
    assert done.returncode == 1 and done.stderr.count("Traceback (most recent call last)") == 2, done.stderr
    assert all(f"liquid train: rank {rank} on {HOST}: KeyError" in done.stderr for rank in (0, 1))


def test_a_killed_rank_is_named(root: Path) -> None:
    done = run(root, "killed")
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert f"rank 1 on {HOST} was killed by SIGKILL" in lines(done)[-1]


@pytest.mark.slow  # it gives the other rank 30 seconds to end
def test_torchrun_itself_shows_the_same(root: Path) -> None:
    done = run(root, "data", "torch.distributed.run")
    said = lines(done)
    assert len(said) == 1 and said[0].startswith(f"liquid train: {MISTAKES['data']}"), done.stderr
    assert "rank      : 1" in done.stderr.partition("Root Cause")[2], "the rank that failed ends first"
