"""metrics.jsonl: each step stands in it once."""

from __future__ import annotations

from pathlib import Path

from liquid_train.training.tracker import drop_lines_after


def test_the_log_is_cut_at_the_checkpoint(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"step": 1}\n{"step": 2}\n{"step": 2, "val/loss/t2i": 1}\n{"step": 3}\n{"step": 4, "lo')
    drop_lines_after(log, 2)
    assert log.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 2, "val/loss/t2i": 1}\n'
