"""Checkpoints of real ranks when things go wrong: kill -9 in the middle of a save, a full disk, a rank that cannot
write."""

from __future__ import annotations

import errno
import os
import random
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from liquid_train.checkpoint import folder as checkpoint
from tests.distributed.running import (
    attempt,
    kill_all,
    make_data,
    metrics,
    ranks,
    start,
    start_ranks,
    train,
    wait_for_step,
)
from tests.forked import Together

COMMON = ("launch.nproc=2", "schedule=constant", "checkpoint.shard_gib=1e-4", "checkpoint.every=1")
ENDLESS = (*COMMON, "train.steps=1000000")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("faults"))


def wait_until(condition: Callable[[], object], process: subprocess.Popen[str] | Together, what: str) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, (
            f"{what}: not within two minutes (exit status {process.poll()})"
        )
        time.sleep(0.002)


def partials(run: Path) -> list[Path]:
    return list((run / "checkpoints").glob(".step-*.partial"))


def newest(run: Path) -> Path:
    """The newest checkpoint, which must be as it was recorded, byte by byte."""
    found = checkpoint.committed(run)[-1]
    assert checkpoint.problems(found, hashes=True) == []
    return found


def newest_step(run: Path) -> int:
    complete = checkpoint.committed(run)
    return checkpoint.step_of(complete[-1]) if complete else 0


def kill_in_a_save(run: Path, process: Together, dice: random.Random) -> bool:
    """kill -9 of everything at a random moment of a save, which takes as long as the one before. Whether it was still
    being written."""
    before = newest_step(run)  # a save of this start must be whole: what an earlier kill left looks like one begun
    wait_until(lambda: newest_step(run) > before, process, "a first checkpoint")
    wait_until(lambda: partials(run), process, "a save")
    begun = time.monotonic()
    wait_until(lambda: not partials(run), process, "the end of a save")
    seconds = time.monotonic() - begun
    wait_until(lambda: partials(run), process, "another save")
    time.sleep(dice.uniform(0, seconds))
    process.kill()
    return bool(partials(run))


@pytest.mark.timeout(2400)
@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_while_saving(root: Path, kills: int) -> None:
    name, dice = f"killed-{kills}", random.Random(kills)
    run = root / name
    hits = attempts = reached = 0
    while hits < kills:
        attempts += 1
        assert attempts <= 3 * kills + 8, f"only {hits} of {attempts} kills hit a save"
        with start_ranks(root, name, *ENDLESS) as started:
            hits += kill_in_a_save(run, started, dice)
        before, reached = reached, checkpoint.step_of(newest(run))
        assert reached > before
    end = reached + 3
    lines = train(root, name, *COMMON, f"train.steps={end}")
    assert [m["step"] for m in lines] == list(range(1, end + 1))
    assert checkpoint.step_of(newest(run)) == end and not partials(run)


class Disk:
    """A file system of a few MiB at a folder, filled by a file of zeros as far as a test wants."""

    def __init__(self, folder: Path, mib: int) -> None:
        self.folder = folder
        folder.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(folder)], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")

    def leave(self, room: int) -> None:
        """Fill the disk until `room` bytes are left for what is next to the checkpoint being written at this moment."""
        state = os.statvfs(self.folder)
        while True:
            size = state.f_blocks * state.f_frsize - self._used() - room
            with (self.folder / "ballast").open("ab") as ballast:
                ballast.truncate(min(size, os.fstat(ballast.fileno()).st_size))
                try:
                    os.posix_fallocate(ballast.fileno(), 0, size)
                    return
                except OSError as error:
                    assert error.errno == errno.ENOSPC
            time.sleep(0.005)

    def _used(self) -> int:
        listed = subprocess.run(
            ["find", self.folder, "-type", "f", "-printf", "%b %P\n"], capture_output=True, text=True
        ).stdout.splitlines()
        files = [line.split(maxsplit=1) for line in listed]
        return 512 * sum(int(blocks) for blocks, name in files if name != "ballast" and ".partial/" not in name)

    def empty(self) -> None:
        (self.folder / "ballast").unlink()


@pytest.fixture
def disk(root: Path) -> Iterator[Disk]:
    folder = root / "disk"
    try:
        yield Disk(folder, mib=8)
    finally:
        subprocess.run(["umount", str(folder)], check=False, capture_output=True)
        folder.rmdir()


def stopped(process: subprocess.Popen[str]) -> int:
    process.send_signal(signal.SIGTERM)
    return process.wait(timeout=120)


def test_a_disk_that_fills_up_and_gets_room_again(root: Path, disk: Disk, tmp_path: Path) -> None:
    """Room for ever larger parts of a checkpoint, so that every file of it fails once; then for all of it."""
    run, log = disk.folder, tmp_path / "log"
    with log.open("w") as stderr:
        process = start(root, run.name, *ENDLESS, stderr=stderr.fileno())
    try:
        wait_for_step(run, 3, process)
        size = sum(entry["size"] for entry in checkpoint.read_commit(newest(run))["files"].values())
        disk.leave(0)
        wait_until(
            lambda: "metrics.jsonl: No space left on device" in log.read_text(), process, "a log that cannot be written"
        )
        for share in (0.0, 0.2, 0.5, 0.7, 0.8, 0.9):
            disk.leave(int(share * size))
            failed = log.read_text().count("was not written")
            wait_until(
                partial(lambda failed: log.read_text().count("was not written") >= failed + 3, failed),
                process,
                f"room for {share} of a checkpoint: a failure",
            )
            newest(run)
        last = newest_step(run)
        disk.empty()
        wait_until(partial(lambda last: newest_step(run) > last + 1, last), process, "a checkpoint after there is room")
        assert stopped(process) == 0, log.read_text()
    finally:
        kill_all(process)
    text = log.read_text()
    assert "Traceback" not in text
    said = [line for line in text.splitlines() if "was not written" in line]
    assert all("Training goes on" in line and "a restart goes on from step-" in line for line in said)
    for cause in ("No space left on device", "/optimizer", ".safetensors"):
        assert any(cause in line for line in said), cause
    assert [m["step"] for m in metrics(run)] == list(range(1, checkpoint.step_of(newest(run)) + 1)), (
        "no line is lost, none is cut"
    )
    assert not partials(run)


@pytest.mark.slow
def test_a_last_checkpoint_that_has_no_room_ends_the_run_with_an_error(root: Path, disk: Disk) -> None:
    options = (*COMMON, "train.steps=2")
    disk.leave(1_800_000)  # a checkpoint takes 1.1 MB
    done = attempt(root, disk.folder.name, *options)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert (
        "liquid train: the checkpoint of step 2 was not written: " in done.stderr
        and "a restart goes on from step-00000001" in done.stderr
    )
    assert checkpoint.step_of(newest(disk.folder)) == 1 and not partials(disk.folder)
    disk.empty()
    assert [m["step"] for m in train(root, disk.folder.name, *options)] == [1, 2]
    assert checkpoint.step_of(newest(disk.folder)) == 2


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="another process's limits can be set on Linux only")
def test_one_rank_that_cannot_write_stops_nobody(root: Path, tmp_path: Path) -> None:
    """A limit on the size of files, set on a single rank: the optimizer's file is too large for it. The others must not
    wait for it."""
    run, log = root / "limited", tmp_path / "log"
    with log.open("w") as stderr:
        process = start(root, run.name, *ENDLESS, stderr=stderr.fileno())
    try:
        wait_for_step(run, 2, process)
        for rank, pid in sorted(ranks(process).items()):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
            wait_until(
                partial(lambda rank: f"rank {rank}: " in log.read_text(), rank),
                process,
                f"what rank {rank} could not write",
            )
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            last = newest_step(run)
            wait_until(
                partial(lambda last: newest_step(run) > last + 1, last), process, "a checkpoint of ranks that can write"
            )
        assert stopped(process) == 0, log.read_text()
    finally:
        kill_all(process)
    assert "Traceback" not in log.read_text() and not partials(run)
    assert [m["step"] for m in metrics(run)] == list(range(1, checkpoint.step_of(newest(run)) + 1))
