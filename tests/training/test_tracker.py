"""metrics.jsonl: each step stands in it once."""

from __future__ import annotations

from pathlib import Path

from liquid_train.training.tracker import drop_lines_after
from liquid_train.training.wandb import run_id


def test_the_log_is_cut_at_the_checkpoint(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"step": 1}\n{"step": 2}\n{"step": 2, "val/loss/t2i": 1}\n{"step": 3}\n{"step": 4, "lo')
    drop_lines_after(log, 2)
    assert log.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 2, "val/loss/t2i": 1}\n'


def test_a_runs_id_in_wandb_is_made_once_and_kept_in_its_folder(tmp_path: Path) -> None:
    """Two runs of one name are two; a run of an older version keeps its name as its id, under which its history is."""
    for name in ("a", "b", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").touch()
    first = run_id(tmp_path / "a", "demo/x")
    assert first.startswith("demo-x-") and run_id(tmp_path / "a", "another name") == first
    assert run_id(tmp_path / "b", "demo/x") != first
    (tmp_path / "a").rename(tmp_path / "moved")
    assert run_id(tmp_path / "moved", "demo/x") == first
    (tmp_path / "old" / "metrics.jsonl").write_text('{"step": 1}\n')
    assert run_id(tmp_path / "old", "demo/x") == "demo-x"
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == ["metrics.jsonl", "wandb_id"]
