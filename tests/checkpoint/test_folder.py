"""Which checkpoints stay, which are found, and what going back does to the later ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from liquid_train.checkpoint import folder as checkpoint
from liquid_train.checkpoint.resume import find_checkpoint
from liquid_train.cli import main
from liquid_train.config.schema import TrainJob


def add(run: Path, *steps: int) -> None:
    for step in steps:
        partial = checkpoint.begin(run, step)
        (partial / "trainer.json").write_text(str(step))
        checkpoint.commit(partial, step, {}, checkpoint.file_records(partial))


def steps(run: Path) -> list[int]:
    return [checkpoint.step_of(p) for p in checkpoint.committed(run)]


def job(run: Path, resume: Path | str) -> TrainJob:
    config = TrainJob()
    config.run.dir, config.checkpoint.resume = str(run), str(resume)
    return config


@pytest.mark.parametrize(
    ("keep", "keep_every", "left"), [(2, None, [50, 60]), (1, 20, [20, 40, 60]), (3, 30, [30, 40, 50, 60])]
)
def test_the_newest_stay_and_those_of_every_so_many_steps(
    tmp_path: Path, keep: int, keep_every: int | None, left: list[int]
) -> None:
    add(tmp_path, 10, 20, 30, 40, 50, 60)
    checkpoint.retain(tmp_path, keep, keep_every)
    assert steps(tmp_path) == left


def test_going_back_sets_later_ones_aside(tmp_path: Path) -> None:
    """Otherwise they would count among the newest, the new ones would be removed, and the next resume would find the
    old ones."""
    add(tmp_path, 10, 20, 30)
    moved = checkpoint.set_aside(tmp_path, 10)
    assert [p.relative_to(tmp_path).as_posix() for p in moved] == [
        f"checkpoints/superseded/step-000000{s}" for s in (20, 30)
    ]
    assert all((p / "trainer.json").is_file() for p in moved)
    add(tmp_path, 20)
    checkpoint.retain(tmp_path, 1)
    assert steps(tmp_path) == [20]
    assert [p.name for p in checkpoint.set_aside(tmp_path, 0)] == ["step-00000020"], (
        "twice the same step: the later life's one stays"
    )
    assert find_checkpoint(job(tmp_path, "auto")) is None


def test_a_branch_goes_on_from_its_own_checkpoints(tmp_path: Path) -> None:
    trunk, branch = tmp_path / "trunk", tmp_path / "branch"
    add(trunk, 10, 20)
    start = trunk / "checkpoints" / "step-00000010"
    assert find_checkpoint(job(branch, start)) == start
    add(branch, 15)
    assert find_checkpoint(job(branch, start)) == branch / "checkpoints" / "step-00000015"
    assert find_checkpoint(job(trunk, start)) == start, "in the run itself a path means to go back"
    assert find_checkpoint(job(trunk, "auto")) == trunk / "checkpoints" / "step-00000020"
    (start / "trainer.json").write_text("cut")
    with pytest.raises(
        ValueError,
        match="checkpoint.resume=.*step-00000010: not a complete checkpoint .*trainer.json: 3 bytes instead of 2",
    ):
        find_checkpoint(job(tmp_path / "other", start))


def test_verify_takes_a_checkpoint_or_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add(tmp_path / "run", 10, 20)
    folder = tmp_path / "run" / "checkpoints"
    for path, step in ((tmp_path / "run", 20), (folder / "step-00000010", 10)):
        assert main(["checkpoint", "verify", str(path)]) == 0
        assert capsys.readouterr().out == f"{folder / f'step-{step:08d}'}: complete, every file as recorded\n"
    (folder / "step-00000010" / "trainer.json").write_text("99")
    assert main(["checkpoint", "verify", str(folder / "step-00000010")]) == 1
    assert "trainer.json: its content changed (sha256)" in capsys.readouterr().out


@pytest.mark.parametrize("content", [None, "[]", "{", '"x"', '{"files": []}', '{"schema": 1}', "{}"])
@pytest.mark.parametrize("action", ["verify", "list"])
def test_what_is_no_checkpoint_is_refused_in_one_line(
    action: str, content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder without COMMIT.json, or with another program's; neither is resumed from."""
    folder = tmp_path / "checkpoints" / "step-00000010"
    folder.mkdir(parents=True)
    if content is not None:
        (folder / "COMMIT.json").write_text(content)
    path = folder if action == "verify" else tmp_path
    status = main(["checkpoint", action, str(path)])
    out, err = capsys.readouterr()
    assert (status, bool(out)) in ((2, False), (1, True)) and len((out or err).strip().splitlines()) == 1
    assert str(path) in out + err and "Errno" not in out + err
    assert checkpoint.committed(tmp_path) == []
