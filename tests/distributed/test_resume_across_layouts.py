"""A checkpoint of four ranks, two by two in tensor parallel, is gone on with in other layouts: losses are those of an
unbroken run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.distributed.running import make_data, train

HEADS = [
    "backbone.architecture.num_attention_heads=4",
    "backbone.architecture.num_key_value_heads=2",
    "backbone.tokenizer_size=301",
]
OPTIONS = [*HEADS, "schedule=constant", "schedule.warmup=0", "checkpoint.every=5"]
LAYOUTS = {
    "one": ["launch.nproc=1"],
    "two": ["launch.nproc=2"],
    "four": ["launch.nproc=4"],
    "tensor": ["launch.nproc=2", "parallel.tensor=2"],
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_data(tmp_path_factory.mktemp("across"))
    train(folder, "unbroken", *OPTIONS, "train.steps=10", "launch.nproc=1")
    train(folder, "saved", *OPTIONS, "train.steps=5", "launch.nproc=4", "parallel.tensor=2")
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_resume_in_another_layout(root: Path, layout: str) -> None:
    shutil.copytree(root / "saved", root / layout)
    lines = train(root, layout, *OPTIONS, "train.steps=10", *LAYOUTS[layout])
    unbroken = train(root, "unbroken", *OPTIONS, "train.steps=10", "launch.nproc=1")  # nothing to do: its metrics
    assert [m["step"] for m in lines] == list(range(1, 11))
    for a, b in zip(lines, unbroken, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-4), a["step"]
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3), a["step"]
