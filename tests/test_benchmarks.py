"""Benchmarks compare like with like: the same first step, and memory that is the loss's own. Times are not tested."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import hf_trainer, loss_memory
from liquid_train.config.compose import load
from tests.shard_sets import mixture_overrides


def test_trainer_and_ours_take_the_same_first_step(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    config = load("train", ["data=easy_vqa", *mixture_overrides(tmp_path, chains=True), "train.steps=3"])
    found = {way: hf_trainer.measure(way, config) for way in hf_trainer.WAYS}
    hf_trainer.assert_equal_losses({way: f["loss"] for way, f in found.items()})
    assert len({(f["documents"], f["tokens"]) for f in found.values()}) == 1, found
    assert found["packed"]["positions"] == found["packed"]["tokens"]
    assert found["padded"]["positions"] > found["ours"]["positions"] >= found["ours"]["tokens"]


def test_other_losses_end_the_comparison() -> None:
    with pytest.raises(AssertionError, match="step 1"):
        hf_trainer.assert_equal_losses({"padded": 7.0, "packed": 7.0, "ours": 7.0 + 2 * hf_trainer.TOLERANCE})
    with pytest.raises(AssertionError):
        hf_trainer.assert_equal_losses({"padded": float("nan"), "packed": 7.0, "ours": 7.0})


def test_without_accelerate_it_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hf_trainer, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        hf_trainer.parse([])
    assert "pip install" in capsys.readouterr().err


@pytest.mark.slow
def test_memory_of_the_chunked_loss_stays_that_of_a_chunk() -> None:
    tokens, rows, chunk = 512, 20_000, 32
    found = loss_memory.report(loss_memory.parse(f"--tokens {tokens} --rows {rows} --width 32 --chunk {chunk}".split()))
    logits = tokens * rows * 4
    assert found.plain > 2 * logits
    assert found.chunked[tokens] < found.plain / 4
    assert found.chunked[4 * tokens] - found.chunked[tokens] < logits / 4
