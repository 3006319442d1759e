"""A run folder that an older version wrote: reported, generated from and exported as that version would have."""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.commands import liquid

ARCHIVE = Path(__file__).parents[1] / "fixtures" / "run_of_0053d72.tar.xz"


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """The working folder of that run: run/, images/, texts/ and what was expected of it."""
    with tarfile.open(ARCHIVE) as tar:
        tar.extractall(tmp_path, filter="data")
    return tmp_path


def run(folder: Path, *arguments: str) -> str:
    done = liquid(folder, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def overrides(folder: Path) -> list[str]:
    """Those that the run was started with, from the config it left."""
    paths = [
        f"data.{g}.{task}.path={'texts' if task == 'text' else 'images'}"
        for g in ("sources", "heldout")
        for task in ("text", "t2i", "i2t", "vqa")
    ]
    shape = [
        "hidden_size=8",
        "intermediate_size=16",
        "num_hidden_layers=1",
        "num_attention_heads=2",
        "num_key_value_heads=1",
    ]
    return [
        "experiment=quickstart",
        "run.dir=run",
        "run.name=fixture",
        *paths,
        *(f"backbone.architecture.{s}" for s in shape),
        "backbone.tokenizer_size=280",
        "data.seq_len=128",
        "data.global_batch=4",
        "train.micro_batch=2",
        "parallel.precision=fp32",
        "optimizer=adamw",
        "optimizer.lr=1e-3",
        "data.streams=null",
        "data.image_loss=false",
        "data.sources.t2i.weight=10",
        "data.sources.i2t.weight=0.4",
        "data.sources.vqa.weight=0.9",
        "data.sources.vqa.questions_per_document=10",
        "~data.sources.questions",
        "tracker.wandb.mode=disabled",
        "data.workers=0",
        "launch.nproc=1",
        "train.steps=8",
        "train.batch_digest=true",
        "checkpoint.every=4",
        "checkpoint.keep=4",
        "evals.every=4",
        "evals.images=4",
        "evals.vqa_samples=4",
        "evals.quality_images=0",
        "evals.caption_images=0",
        "tracker.progress=false",
    ]


def test_training_goes_on_only_where_another_order_of_the_data_is_allowed(older: Path) -> None:
    """Its order of the data is not this version's: documents of a window came by length."""
    refused = liquid(older, "train", *overrides(older))
    *hints, error = refused.stderr.splitlines()
    assert refused.returncode == 2 and all("liquid data index" in hint for hint in hints), refused.stderr
    assert "step-00000004" in error and "in another order (1, now 2)" in error and "allow_change" in error
    allowed = liquid(older, "train", *overrides(older), "data.allow_change=true")
    assert allowed.returncode == 0 and "begins from the start" in allowed.stderr, allowed.stderr
    expected, found = (
        [json.loads(line) for line in (older / name).read_text().splitlines()]
        for name in ("expected_metrics.jsonl", "run/metrics.jsonl")
    )
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    trained = [line for line in found if "loss" in line]
    assert [line["step"] for line in trained] == list(range(1, 9)) and trained[-1]["loss"] < trained[0]["loss"]
    # what does not depend on the order: the model of the checkpoint itself
    for old, new in zip(expected, found, strict=True):
        if old["step"] <= 4:
            assert {k: v for k, v in new.items() if k in old} == old


def test_it_is_reported_and_exported_and_generated_from(older: Path) -> None:
    assert "4 of 8" in run(older, "run", "report", "run")
    assert "step-00000004" in (older / "run" / "report.html").read_text()
    run(older, "checkpoint", "export", "run", "exported", "--dtype", "bf16")
    digest = hashlib.sha256((older / "exported" / "model.safetensors").read_bytes()).hexdigest()
    assert digest == (older / "expected_export.sha256").read_text().split()[0]
    run(older, "generate", "checkpoint=run", "prompt=a red circle", "output=images_now")
    now, then = (
        np.asarray(Image.open(older / name / "00000.png")).astype(int) for name in ("images_now", "expected_images")
    )
    # one code that another processor draws differently changes 1/64 of the image
    assert now.shape == then.shape and np.abs(now - then).mean() < 4
    text = run(older, "generate", "checkpoint=run", "task=t2t", "prompt=document", "temperature=0", "max_new_tokens=16")
    assert text == (older / "expected_text.txt").read_text()
