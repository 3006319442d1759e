"""PSNR of a sample of a set's own images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep import tokenize
from data_prep.encode.reconstruction import LOW_DB, SAMPLED, sampled_rows
from liquid_train.data.shards import ShardSet
from liquid_train.generate.images import decode
from liquid_train.image_tokenizer.opening import open_image_tokenizer
from liquid_train.image_tokenizer.preprocess import read_rgb
from liquid_train.image_tokenizer.settings import VQSettings
from tests.source_files import config, image
from tests.tiny_vq import make_vq

FIXED = ["tokenize.shard_size=4", "tokenize.workers=0", "tokenize.progress=false", "tokenize.max_bad=0.5"]


@pytest.mark.parametrize(("rows", "shard_size"), [(1, 8), (2, 8), (7, 2), (4000, 1024), (10**8, 1024), (199, 1024)])
def test_sampled_rows_are_few_spread_and_half_of_them_early(rows: int, shard_size: int) -> None:
    sampled = sampled_rows(rows, shard_size)
    assert sampled == sorted(set(sampled)) and sampled[0] == 0 and sampled[-1] < rows and len(sampled) <= SAMPLED
    assert len(sampled) <= max(4, rows // 50) and sum(row < shard_size for row in sampled) >= len(sampled) / 2
    if rows > 10**6:
        assert sampled[-1] > 0.9 * rows


def test_photos_through_the_tokenizer_of_the_quickstart_warn(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Random colours stand for what it was not trained on; a drawing like easy-VQA's for what it was."""
    for number in range(12):
        (tmp_path / "noise").mkdir(exist_ok=True)
        (tmp_path / "shapes").mkdir(exist_ok=True)
        image(number).save(tmp_path / "noise" / f"{number:02d}.png")
        pixels = np.full((64, 64, 3), 240, np.uint8)
        pixels[10 : 30 + number, 12 : 40 + number] = (70, 130, 230)
        Image.fromarray(pixels).save(tmp_path / "shapes" / f"{number:02d}.png")
    (tmp_path / "noise" / "00.png").write_bytes(b"")  # the first that can be used stands in
    found = {}
    for name in ("noise", "shapes"):
        caplog.clear()
        tokenize.run(config("folder", tmp_path / name, f"tokenize.output={tmp_path / 'set' / name}", *FIXED))
        found[name] = json.loads((tmp_path / "set" / name / "index.json").read_text())["psnr"]
        said = [r.getMessage() for r in caplog.records if "come back from their codes" in r.getMessage()]
        assert len(said) == (2 if name == "noise" else 0)  # after the first shard, and at the end
        assert (
            f"PSNR of {found[name]['images']} images from their codes: {found[name]['db']:.1f}"
            in capsys.readouterr().out
        )
    assert found["noise"]["db"] < 12 and found["shapes"]["db"] > LOW_DB and found["noise"]["images"] == 4
    shards = ShardSet(tmp_path / "set" / "shapes")
    expected = [
        psnr(read_rgb(tmp_path / "shapes" / f"{n:02d}.png"), sample["codes"])
        for n, sample in enumerate(shards)
        if n in sampled_rows(12, 4)
    ]
    assert found["shapes"] == {"db": pytest.approx(np.mean(expected), abs=0.06), "images": len(expected)}


def psnr(pixels: np.ndarray, codes: np.ndarray) -> float:
    made = decode(open_image_tokenizer(VQSettings()), codes[None])[0]
    return float(10 * np.log10(255**2 / np.square(pixels.astype(float) - made).mean()))


def test_it_depends_neither_on_parts_nor_on_repairs(tmp_path: Path) -> None:
    vq = make_vq(tmp_path / "vq")
    (tmp_path / "images").mkdir()
    for number in range(12):
        image(number).save(tmp_path / "images" / f"{number:02d}.png")

    def index_of(output: Path, *more: str) -> bytes:
        tokenize.run(config("folder", tmp_path / "images", f"tokenize.output={output}", *FIXED, *vq, *more))
        return (output / "index.json").read_bytes() if (output / "index.json").exists() else b""

    whole = index_of(tmp_path / "whole")
    assert not index_of(tmp_path / "parts", "tokenize.part=1/2")
    assert index_of(tmp_path / "parts", "tokenize.part=0/2") == whole
    (tmp_path / "whole" / "shard-00001.tar").unlink()
    assert index_of(tmp_path / "whole") == whole
