"""The data engine's rules in real runs: the end of the data, changed data on resume, skipped documents, a loader that
is killed."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.distributed.running import make_data, metrics, start, wait_for_step, without_launcher
from tests.shard_sets import image_set

SOURCES = ("text", "t2i", "i2t", "vqa")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("rules"))


def trained(root: Path, run: str, *overrides: str) -> tuple[subprocess.CompletedProcess[str], list[dict]]:
    return without_launcher(root, run, *overrides), metrics(root / run)


def test_training_ends_when_every_source_is_used_up(root: Path) -> None:
    """Two passes: all ranks leave at the same step, it is saved, and the same command has nothing more to do. Shares
    are exact."""
    passes = [f"data.sources.{name}.max_epochs=2" for name in SOURCES]
    lines = {}
    for ranks in (1, 2):
        run, options = (
            f"ends-{ranks}",
            (f"launch.nproc={ranks}", "train.steps=500", "checkpoint.every=1000", "train.batch_digest=true", *passes),
        )
        done, lines[ranks] = trained(root, run, *options)
        assert done.returncode == 0 and f"training ends at step {len(lines[ranks])} of 500" in done.stderr
        assert (root / run / "checkpoints" / f"step-{len(lines[ranks]):08d}" / "COMMIT.json").exists()
    exact = {"documents", "tokens", "batch_digest", "packing_efficiency"}
    for a, b in zip(lines[1], lines[2], strict=True):
        kept = [
            {k: v for k, v in line.items() if k in exact or k.startswith(("share/", "epoch/", "targets_share/"))}
            for line in (a, b)
        ]
        assert kept[0] == kept[1]
        for kind in ("share/documents/", "share/tokens/", "targets_share/", "loss_share/"):
            assert sum(v for k, v in a.items() if k.startswith(kind)) == pytest.approx(1)
    texts, documents = 30, {"text": 30, "t2i": 40, "i2t": 40, "vqa": 40}  # vqa: three questions in one document
    last = lines[1][-1]
    assert {f"share/documents/{k}": n / 150 for k, n in documents.items()} == pytest.approx(
        {k: v for k, v in last.items() if k.startswith("share/documents")}
    )
    assert last["documents"] >= 300 and last["share/documents/text"] == pytest.approx(texts / 150)
    before = len(lines[1])
    done, again = trained(root, "ends-1", *options[1:], "launch.nproc=1")
    assert done.returncode == 0 and len(again) == before and f"training ends at step {before}" in done.stderr


def test_changed_data_is_refused_or_gone_on_with(root: Path, tmp_path: Path) -> None:
    run = ("launch.nproc=1", "schedule=constant")
    done, _ = trained(root, "changed", "train.steps=6", *run)
    assert done.returncode == 0, done.stderr
    other = [f"data.sources.t2i.path={image_set(tmp_path / 'other', samples=50)}", "data.seq_len=320"]
    refused, _ = trained(root, "changed", "train.steps=9", *run, *other)
    assert (
        refused.returncode == 2
        and "data.sources.t2i.shards: digest" in refused.stderr
        and "data.allow_change=true" in refused.stderr
    )
    done, lines = trained(root, "changed", "train.steps=9", *run, *other, "data.allow_change=true")
    assert done.returncode == 0 and [m["step"] for m in lines] == list(range(1, 10))
    assert "t2i begins from the start" in done.stderr and "data.seq_len: 256 -> 320" in done.stderr
    done, _ = trained(root, "changed", "train.steps=11", *run, *other)
    assert done.returncode == 0, "what was allowed once is the run's data from then on"


def test_a_skipped_document_is_counted_and_the_rest_stays(root: Path) -> None:
    options = ("train.steps=24", "launch.nproc=1", "train.batch_digest=true", "data.sources.text.weight=5")
    _, whole = trained(root, "whole", *options)
    # a later option counts
    done, skipped = trained(root, "skipped", *options, "data.skip=[text/000003]", "launch.nproc=2")
    assert done.returncode == 0 and skipped[-1]["dropped/text: named in data.skip"] >= 1, (
        "counted by whichever rank it was"
    )
    differing = [a["step"] for a, b in zip(whole, skipped, strict=True) if a["batch_digest"] != b["batch_digest"]]
    assert 1 <= len(differing) <= 8 and skipped[-1]["documents"] < whole[-1]["documents"]


def test_a_source_that_drops_its_documents_ends_the_run(root: Path, tmp_path: Path) -> None:
    """What fits no sequence is refused before the model is built; what only the samples tell, once it is sure."""
    done = without_launcher(root, "short", "train.steps=9", "launch.nproc=1", "data.seq_len=64")
    assert done.returncode == 2
    assert "data.seq_len=64: too short for all 40 images of data.sources.t2i" in done.stderr
    wordy = image_set(tmp_path / "wordy", shapes=("circle", "very " * 300 + "long triangle"))
    done, lines = trained(root, "wordy", "train.steps=60", "launch.nproc=1", f"data.sources.vqa.path={wordy}")
    assert done.returncode == 2 and 0 < len(lines) < 60
    assert "data.max_dropped=0.1: " in done.stderr and "of data.sources.vqa were dropped (longer than" in done.stderr
    assert "data.sources.vqa: longer than seq_len: " in done.stderr, "said on the terminal before"


def children(pid: int) -> list[int]:
    return [int(p) for task in Path(f"/proc/{pid}/task").iterdir() for p in (task / "children").read_text().split()]


@pytest.mark.skipif(
    not Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").exists(), reason="needs /proc/PID/task/TID/children"
)
def test_a_killed_loader_ends_the_run_with_its_cause(root: Path) -> None:
    """As the kernel does when memory runs out: SIGKILL to a worker of a single process that trains."""
    run = root / "oom"
    process = start(root, "oom", "train.steps=4000", "launch.nproc=1", "data.workers=2", stderr=subprocess.PIPE)
    wait_for_step(run, 1, process)
    workers = [p for p in children(process.pid) if b"liquid_train" in Path(f"/proc/{p}/cmdline").read_bytes()]
    os.kill(workers[-1], signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert (
        process.returncode == 2
        and "a data loader's process died" in err
        and "killed by signal: Killed" in err
        and "Traceback" not in err
    )
