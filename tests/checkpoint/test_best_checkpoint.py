"""The best checkpoint is known, kept next to the newest ones, and named by RUN/checkpoints/best; what costs more is
measured more rarely."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evals.periodic import evaluate
from liquid_train.checkpoint.folder import (
    COMMIT,
    SCHEMA,
    best,
    checkpoint_name,
    committed,
    model_folder,
    note_score,
    read_scores,
    retain,
)
from liquid_train.cli import main
from liquid_train.config.compose import load
from liquid_train.training.settings import EvalsConfig
from tests.shard_sets import image_set, mixture_overrides
from tests.tiny_model import tiny, vq


def checkpoints(run: Path, *steps: int) -> None:
    for step in steps:
        folder = run / "checkpoints" / checkpoint_name(step)
        (folder / "model").mkdir(parents=True)
        (folder / "model" / "config.json").write_text("{}")
        (folder / COMMIT).write_text(json.dumps({"schema": SCHEMA, "step": step, "files": {}}))


def kept(run: Path) -> list[int]:
    return [int(p.name.removeprefix("step-")) for p in committed(run)]


@pytest.mark.parametrize(("best_is", "winner"), [("highest", 20), ("lowest", 10)])
def test_the_best_is_kept_beside_the_newest_and_found_by_its_name(tmp_path, best_is, winner, capsys):
    for step, value in ((10, 0.2), (20, 0.9), (30, 0.5), (40, 0.5)):
        note_score(tmp_path, step, "eval/x", best_is, value)
        checkpoints(tmp_path, step)
    checkpoints(tmp_path, 50)  # saved on a signal: no score
    assert best(tmp_path) == tmp_path / "checkpoints" / checkpoint_name(winner)
    retain(tmp_path, 2)
    assert kept(tmp_path) == [winner, 40, 50]
    assert (
        model_folder(tmp_path / "checkpoints" / "best") == tmp_path / "checkpoints" / checkpoint_name(winner) / "model"
    )
    assert main(["checkpoint", "list", str(tmp_path)]) == 0
    (marked,) = [line for line in capsys.readouterr().out.splitlines() if "best: eval/x" in line]
    assert checkpoint_name(winner) in marked


def test_ties_go_to_the_newer_and_scores_that_no_longer_hold_are_forgotten(tmp_path):
    checkpoints(tmp_path, 10, 20)
    assert best(tmp_path) is None
    with pytest.raises(ValueError, match=r"best: no checkpoint there has a score; train with checkpoint.best"):
        model_folder(tmp_path / "checkpoints" / "best")
    for step in (10, 20, 30):
        note_score(tmp_path, step, "eval/x", "highest", 0.5)
    found = best(tmp_path)
    assert found is not None and found.name == checkpoint_name(20)  # 30 has no checkpoint
    note_score(tmp_path, 20, "eval/x", "highest", 0.4)  # the run went back to 10 and came to 20 again
    assert read_scores(tmp_path)["scores"] == {"10": 0.5, "20": 0.4}
    note_score(tmp_path, 30, "eval/y", "highest", 0.1)
    assert read_scores(tmp_path)["scores"] == {"30": 0.1}
    retain(tmp_path, 1)
    assert kept(tmp_path) == [20]


def test_periods_decide_what_is_measured_and_the_last_step_measures_all(tmp_path):
    model, vocabulary = tiny(tmp_path / "model")
    images = str(image_set(tmp_path / "images", samples=8))
    config = EvalsConfig(
        vqa_samples=2,
        images=2,
        prompts=["a red circle"],
        guidance=1.0,
        quality_images=4,
        quality_reference=8,
        caption_images=4,
        periods={"image_quality": 20, "captions": 30, "grid": 20},
    )
    whole = {"vqa", "grid", "image_quality", "self_vqascore", "captions"}
    expected = {
        10: {"vqa", "self_vqascore"},
        20: whole - {"captions"},
        30: {"vqa", "self_vqascore", "captions"},
        31: whole,
    }
    scores = {}
    for step, names in expected.items():
        out = tmp_path / str(step)
        found = evaluate(
            model,
            vocabulary,
            vq(),
            config,
            sets=images,
            grid=(2, 2),
            prompt="",
            step=step,
            out_dir=out,
            rank=0,
            world_size=1,
            last=step == 31,
        )
        assert {p.stem.removeprefix(f"step-{step:08d}-") for p in (out / "evals").iterdir()} == names
        assert (out / "samples").exists() == ("grid" in names)
        scores[step] = found["eval/self_vqascore"]
    assert len(set(scores.values())) == 1  # the same images, whatever else is due


def test_settings_that_cannot_work_are_told(tmp_path):
    base = [
        "data=easy_vqa",
        "evals=easy_vqa",
        "evals.every=100",
        "checkpoint.every=200",
        "train.steps=400",
        *mixture_overrides(tmp_path, chains=True),
    ]
    config = load("train", [*base, "evals.periods.image_quality=300", "checkpoint.best=eval/vqa_accuracy"])
    assert config.evals.periods == {"image_quality": 300} and config.checkpoint.best == "eval/vqa_accuracy"
    for overrides, message in (
        (["evals.periods.fid=100"], "evals.periods.fid: no such metric; one of captions, grid"),
        (["evals.periods.vqa=150"], "evals.periods.vqa=150: must be a multiple of evals.every=100"),
        (["evals.periods.vqa=0"], "evals.periods.vqa=0"),
        (["checkpoint.best=vqa_accuracy"], "checkpoint.best=vqa_accuracy: give a number of metrics.jsonl"),
        (
            ["checkpoint.best=val/loss/t2i", "checkpoint.best_is=least"],
            "checkpoint.best_is=least: one of highest, lowest",
        ),
        (
            ["checkpoint.best=val/loss/t2i", "checkpoint.every=150"],
            "needs checkpoint.every=150 to be a multiple of evals.every=100",
        ),
        (["checkpoint.best=val/loss/t2i", "evals.every=0"], "a multiple of evals.every=0"),
    ):
        with pytest.raises(ValueError, match=message):
            load("train", [*base, *overrides])
