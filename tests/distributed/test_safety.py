"""Loss spikes and a rank that stands still, in real runs on data of which a few documents are garbage."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.shard_set.writer import PARTIAL, ShardWriter
from liquid_train.checkpoint import folder as checkpoint
from liquid_train.cli import main
from tests.distributed.running import (
    command,
    kill_all,
    make_data,
    metrics,
    ranks,
    start,
    wait_for_step,
    without_timings,
)
from tests.shard_sets import finish_set

STEPS = 60
TEXT = "the with statement wraps a block of code and raises an error " * 9
# of 160 documents: by seed 0 it comes while everything is new, and again, whole, at step 45
GARBAGE = 105


def make_odd_texts(folder: Path) -> Path:
    """The same text again and again, and a document of random letters."""
    (folder / PARTIAL).mkdir(parents=True)
    writer, generator = ShardWriter(folder, 0), np.random.default_rng(2)
    for n in range(160):
        text = "".join(generator.choice(list("abcdefghijklmnopqrstuvwxyz0123456789"), 200)) if n == GARBAGE else TEXT
        writer.add(f"{n:06d}", {"source": "test"}, text, None)
    return finish_set(folder, [writer])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_data(tmp_path_factory.mktemp("safety"))
    make_odd_texts(folder / "odd")
    return folder


def options(root: Path, *more: str) -> list[str]:
    others = [f"data.sources.{task}.weight=0" for task in ("t2i", "i2t", "vqa")]
    return [
        *others,
        "data.sources.text.weight=1",
        f"data.sources.text.path={root / 'odd'}",
        "data.global_batch=2",
        "train.micro_batch=1",
        "optimizer.lr=1e-2",
        "schedule=constant",
        "schedule.warmup=0",
        "checkpoint.every=10",
        "train.batch_digest=true",
        "train.spike.window=16",
        "tracker.progress=false",
        *more,
    ]


def here(root: Path, name: str, *more: str, status: int = 0) -> list[dict[str, Any]]:
    """One rank, in this process."""
    arguments = command(root, name, "launch.nproc=1", *options(root, *more))
    assert main(arguments[arguments.index("train") :]) == status
    return metrics(root / name)


@pytest.fixture(scope="module")
def warned(root: Path) -> list[dict[str, Any]]:
    return here(root, "warned", f"train.steps={STEPS}", "train.profile_steps=[3,4]")


@pytest.fixture(scope="module")
def rewound(root: Path) -> list[dict[str, Any]]:
    return here(root, "rewound", f"train.steps={STEPS}", "train.spike.action=rewind")


def spikes(lines: list[dict[str, Any]]) -> list[int]:
    """Steps that were counted as spikes."""
    return [b["step"] for a, b in zip(lines, lines[1:], strict=False) if b["spikes"] > a["spikes"]]


def test_garbage_is_counted_and_nothing_else_is(warned: list[dict[str, Any]]) -> None:
    found = spikes(warned)
    assert len(found) == 1
    assert warned[found[0] - 1]["loss"] > 10 * max(warned[step - 1]["loss"] for step in (found[0] - 1, found[0] + 1))


def test_a_skipped_spike_changes_nothing(root: Path, warned: list[dict[str, Any]]) -> None:
    lines = here(root, "skipped", f"train.steps={STEPS}", "train.spike.action=skip")
    first = spikes(warned)[0]
    assert [m["step"] for m in lines] == list(range(1, STEPS + 1)) and spikes(lines) == spikes(warned)
    assert without_timings(lines[:first]) == without_timings(warned[:first]), (
        "the loss of the first one was the same: it is known before the step"
    )
    done = here(root, "skipped", f"train.steps={STEPS + 1}", "train.spike.action=skip")
    assert without_timings(done[:STEPS]) == without_timings(lines) and done[-1]["spikes"] == 1


def test_after_a_rewind_the_data_goes_on_behind_the_spike(
    warned: list[dict[str, Any]], rewound: list[dict[str, Any]]
) -> None:
    found = spikes(warned)
    saved = 10 * ((found[0] - 1) // 10)
    assert [m["step"] for m in rewound] == list(range(1, STEPS + 1)), "each step stands once"
    assert without_timings(rewound[:saved]) == without_timings(warned[:saved])
    after = rewound[saved]
    assert (after["spikes"], after["rewinds"], after["left_out"]) == (1, 1, found[-1] - saved)
    digests = [m["batch_digest"] for m in warned]
    assert [m["batch_digest"] for m in rewound[saved:]][: STEPS - found[-1]] == digests[found[-1] :]
    assert (
        after["lr"] == warned[saved]["lr"] and max(m["loss"] for m in rewound[saved:]) < 2 * rewound[saved - 1]["loss"]
    )


def test_a_rewound_run_cut_in_two_equals_a_whole_one(root: Path, rewound: list[dict[str, Any]]) -> None:
    """Also where the first part ends with the rewind still in the past: what was left out is in the checkpoint."""
    here(root, "cut", f"train.steps={STEPS - 4}", "train.spike.action=rewind")
    assert without_timings(here(root, "cut", f"train.steps={STEPS}", "train.spike.action=rewind")) == without_timings(
        rewound
    )
    weights = [(checkpoint.model_folder(root / run) / "model.safetensors").read_bytes() for run in ("cut", "rewound")]
    assert weights[0] == weights[1]


def test_replay_finds_the_data_of_a_step_after_a_rewind(
    root: Path, rewound: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert rewound[54]["left_out"] > 0 and main(["run", "replay", str(root / "rewound"), "--step", "55"]) == 0
    assert "its digest is the one that was logged" in capsys.readouterr().out


def test_the_last_rewind_is_followed_by_an_end(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A threshold that ordinary noise passes."""
    here(
        root,
        "spent",
        "train.steps=200",
        "train.spike.action=rewind",
        "train.spike.rewinds=1",
        "train.spike.threshold=0.3",
        status=2,
    )
    said = capsys.readouterr().err
    assert "train.spike.rewinds=1" in said and "optimizer.lr=0.01" in said and "back to the checkpoint of step" in said


def test_profile_steps_write_a_trace_and_change_nothing(
    root: Path, warned: list[dict[str, Any]], rewound: list[dict[str, Any]]
) -> None:
    folder = root / "warned" / "profile"
    names = {event.get("name") for event in json.loads((folder / "rank-0.trace.json").read_text())["traceEvents"]}
    assert {"forward", "backward", "optimizer", "aten::mm"} <= names
    assert "aten::mm" in (folder / "rank-0.operators.txt").read_text()
    assert without_timings(warned[:40]) == without_timings(rewound[:40]) and not (root / "rewound" / "profile").exists()


def test_time_is_split(warned: list[dict[str, Any]]) -> None:
    for line in warned:
        assert {
            f"time/{name}" for name in ("data", "forward", "backward", "optimizer", "checkpoint", "evaluation")
        } <= set(line)
        assert all(line[f"time/{name}"] > 0 for name in ("data", "forward", "backward", "optimizer"))
    assert [m["step"] for m in warned if m["time/checkpoint"] > 0] == list(range(11, STEPS + 1, 10)), (
        "a save counts with the step after it"
    )


@pytest.mark.slow
def test_two_ranks_rewind_alike_and_one_that_stands_still_is_named(root: Path, rewound: list[dict[str, Any]]) -> None:
    """Rank 1 is stopped from outside. Rank 0 waits for it in a collective, says so and ends; rank 1 wakes up and finds
    itself alone."""
    run = root / "two"
    more = options(root, "launch.nproc=2", "train.steps=1000000", "train.spike.action=rewind", "train.hang_timeout=8")
    process = start(root, "two", *more, stderr=subprocess.PIPE)
    try:
        wait_for_step(run, STEPS + 1, process)
        pids = ranks(process)
        os.kill(pids[1], signal.SIGSTOP)
        assert process.stderr is not None
        said = []
        for line in process.stderr:  # ends with the job
            said.append(line)
            if "rank-0.txt has this" in line:
                while Path(f"/proc/{pids[0]}").exists():
                    time.sleep(0.1)
                os.kill(pids[1], signal.SIGCONT)
        process.wait(timeout=60)
    finally:
        kill_all(process)
    text = "".join(said)
    lines = metrics(run)[:STEPS]
    assert [m["step"] for m in lines] == list(range(1, STEPS + 1))
    assert [(m["batch_digest"], m["spikes"], m["left_out"]) for m in lines] == [
        (m["batch_digest"], m["spikes"], m["left_out"]) for m in rewound
    ]
    assert max(abs(a["loss"] - b["loss"]) for a, b in zip(lines, rewound, strict=True)) < 1e-4
    assert process.returncode == 2 and "Traceback" not in text, text
    head = next(line for line in said if "hangs in" in line)
    assert "liquid train: rank 0 on " in head and " of step " in head and "train.hang_timeout=8" in head
    assert "in step\n" in text, "the stack of the main thread"
    assert "\n  rank 1 on " in text and "last sign of life" in text
    kept = (run / "hangs" / "rank-0.txt").read_text()
    assert head.strip() in kept and "in step\n" in kept and "  rank 1 on " in kept
    entries = pickle.loads((run / "hangs" / "collectives-rank-0").read_bytes())["entries"]
    assert any(entry["profiling_name"] == "gloo:all_reduce" for entry in entries)
    # rank 1 finds its neighbour gone; where waking up takes it long, its own watchdog is first
    alone = next(
        line
        for line in said
        if line.startswith(("liquid train: rank 1: another rank is gone", "liquid train: rank 1 on "))
    )
    assert " of step " in alone and "gloo" not in alone
