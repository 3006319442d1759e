"""Images of several aspect ratios from the files through a short training to what is drawn and read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep import tokenize
from liquid_train.cli import main
from liquid_train.config.compose import load
from liquid_train.generate import image_sampler as sampler
from liquid_train.generate.images import load_image
from liquid_train.generate.session import Session, open_model, open_vq
from liquid_train.image_tokenizer.settings import VQSettings
from liquid_train.model.backbone import ModelCard
from tests import forked

SIZES = [[32, 16], [24, 24], [16, 32]]  # width, height in pixels
SHAPE = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
TRAIN = [
    *(f"backbone.architecture.{key}={value}" for key, value in SHAPE.items()),
    "backbone.tokenizer_size=300",
    "data.seq_len=64",
    "data.global_batch=2",
    "data.workers=0",
    "train.steps=1",
    "train.micro_batch=2",
    "launch.nproc=1",
    "evals.every=0",
    "tracker.wandb.mode=disabled",
    "parallel.precision=fp32",
]


def image(path: Path, width: int, height: int) -> Path:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder after one step on images of three sizes."""
    root = tmp_path_factory.mktemp("multiratio")
    (root / "files").mkdir()
    for n, (width, height) in enumerate([(40, 22), (30, 31), (20, 39), (64, 32), (50, 50), (33, 66)] * 2):
        image(root / "files" / f"{n}.png", width, height)
        (root / "files" / f"{n}.txt").write_text(f"image number {n}")
    asked = [
        "source=folder",
        f"input={root / 'files'}",
        f"output={root / 'set'}",
        "crop=multiratio",
        "size=24",
        "workers=0",
        "progress=false",
    ]
    sizes = ",".join(f"{w}x{h}" for w, h in SIZES)
    tokenize.run(load("tokenize", [f"tokenize.{key}" for key in [*asked, f"sizes=[{sizes}]"]] + ["vq=easy"]))
    sources = [
        f"data.sources.{task}.{key}" for task in ("t2i", "i2t") for key in (f"path={root / 'set'}", "weight=1.0")
    ]
    others = ["~data.sources.text", "~data.sources.vqa", "~data.sources.questions", "~data.heldout"]
    done = forked.liquid("train", "experiment=quickstart", *TRAIN, *sources, *others, f"run.dir={root / 'run'}")
    assert done.returncode == 0, done.stderr
    return root / "run"


@pytest.fixture(scope="module")
def session(run: Path) -> Session:
    return open_model(next((run / "checkpoints").glob("step-*")) / "model", "cpu")


def test_the_sizes_travel_in_the_checkpoint(session: Session) -> None:
    assert session.card.sizes == SIZES and session.card.grid == [3, 3]  # the squarest is the usual one
    assert session.sizes(8) == [(24, 24), (32, 16), (16, 32)]


def test_a_size_of_the_list_is_drawn_on_its_grid(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generated, original = [], sampler.sample_images

    def watched(*arguments, **options):
        generated.append((options["grid"], options["size"]))
        return original(*arguments, **options)

    monkeypatch.setattr(sampler, "sample_images", watched)
    for size, file_size in (("16x32", (16, 32)), (None, (24, 24))):
        output = tmp_path / str(size)
        asked = [] if size is None else [f"size={size}"]
        assert (
            main(
                [
                    "generate",
                    f"checkpoint={run}",
                    "prompt=an image",
                    "guidance=3",
                    f"output={output}",
                    "device=cpu",
                    *asked,
                ]
            )
            == 0
        )
        assert Image.open(output / "00000.png").size == file_size
    assert generated == [((4, 2), (16, 32)), ((3, 3), (24, 24))]  # the usual size is stated as well, as in training


def test_another_size_is_refused_with_the_list(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(
            [
                "generate",
                f"checkpoint={run}",
                "prompt=an image",
                f"output={tmp_path / 'no'}",
                "size=32x32",
                "device=cpu",
            ]
        )
        == 2
    )
    assert "32x16, 24x24, 16x32" in capsys.readouterr().err


def test_images_are_read_at_the_nearest_size(session: Session, tmp_path: Path) -> None:
    from liquid_train.serve.engine import Engine
    from liquid_train.serve.settings import ServeLimits

    vq = open_vq(session, VQSettings("auto", "auto"))
    for width, height, grid in ((90, 50, (2, 4)), (50, 50, (3, 3)), (70, 150, (4, 2))):
        file = image(tmp_path / f"{width}.png", width, height)
        assert load_image(file, session.sizes(8)).shape == (grid[0] * 8, grid[1] * 8, 3)
        assert Engine(session, vq, ServeLimits()).codes(file.read_bytes()).shape == grid


def test_a_card_without_sizes_still_reads(session: Session, tmp_path: Path) -> None:
    """Checkpoints of before: liquid.json without `sizes`."""
    session.card.write(tmp_path)
    card = json.loads((tmp_path / "liquid.json").read_text())
    del card["sizes"]
    (tmp_path / "liquid.json").write_text(json.dumps(card))
    assert ModelCard.read(tmp_path).sizes == []
