"""An image tokenizer and a data source of a user's own, outside the package: docs/extending.md as it stands."""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from liquid_train.cli import main
from liquid_train.data.shards import ShardSet
from liquid_train.image_tokenizer.opening import open_image_tokenizer
from liquid_train.image_tokenizer.settings import VQSettings
from tests.extending import Example, run_command

PAGE = "extending.md"
SMALL = ("tracker.wandb.mode=disabled", "data.workers=0", "data.global_batch=2", "train.micro_batch=2")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for section in ("A data source", "An image tokenizer"):
        Example(PAGE, section).write(tmp_path)
    return tmp_path


@pytest.fixture
def importable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(folder)
    for name in ("stripes", "color_grid"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return folder


def test_a_data_source_of_ones_own(folder: Path) -> None:
    tokenize, verify = Example(PAGE, "A data source").commands
    run_command(folder, tokenize, "tokenize.workers=0", "tokenize.progress=false")
    shards = ShardSet(folder / "data" / "easy")
    assert len(shards) == 24
    assert [sample["text"] for sample in shards][::23] == ["1 black stripes", "24 black stripes"]
    assert shards.index["recipe"]["source"] == {"name": "stripes.Stripes", "options": {"images": 24}, "version": 1}
    assert "24 rows tokenized again, 1,536 of 1,536 codes equal" in run_command(folder, verify)
    assert "nothing to do" in run_command(folder, tokenize)


def test_an_image_tokenizer_of_ones_own(folder: Path) -> None:
    """Tokenized, trained on, generated with and verified, by name alone."""
    tokenize, train, generate = Example(PAGE, "An image tokenizer").commands
    run_command(folder, tokenize, "tokenize.workers=1", "tokenize.progress=false")  # in an encoder process
    shards = ShardSet(folder / "data" / "own")
    assert shards.codebook_size == 64 and shards.fingerprint == "color grid of 4 levels, 1"
    assert shards.index["recipe"]["vq"]["kind"] == "color_grid.ColorGrid"
    for sample in shards:  # black, white and the greys between, alike in every row
        assert sample["codes"].shape == (8, 8) and set(np.unique(sample["codes"])) <= {0, 21, 42, 63}
        assert (sample["codes"] == sample["codes"][0]).all()
    assert "24 rows tokenized again, 1,536 of 1,536 codes equal" in run_command(folder, "liquid data verify data/own")
    run_command(folder, train, *SMALL)
    card = json.loads(next(folder.glob("runs/own/checkpoints/*/model/liquid.json")).read_text())
    assert card["vq_kind"] == "color_grid.ColorGrid" and card["codebook_size"] == 64
    run_command(folder, generate)
    pixels = np.asarray(Image.open(folder / "images" / "00000.png"))
    assert pixels.shape == (64, 64, 3)
    assert (pixels.reshape(8, 8, 8, 8, 3) == pixels[::8, ::8].reshape(8, 1, 8, 1, 3)).all()  # one colour a code


def test_options_make_another_tokenizer(importable: Path) -> None:
    opened = open_image_tokenizer(VQSettings(kind="color_grid.ColorGrid", options={"levels": 2}))
    assert opened.codebook_size == 8 and opened.fingerprint == "color grid of 2 levels, 1"
    images = torch.tensor([-1.0, 1.0]).repeat_interleave(8).expand(1, 3, 8, 16)
    assert opened.encode(images).tolist() == [[[0, 7]]]
    assert torch.equal(opened.decode(opened.encode(images)), images)


def test_codes_of_another_fingerprint_are_another_set(
    importable: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no file to tell such tokenizers apart: their fingerprints do, also where the set is complete."""
    monkeypatch.chdir(importable)
    command = [
        *("tokenize", "tokenize.source=stripes.Stripes", "++tokenize.options.images=4", "vq.kind=color_grid.ColorGrid"),
        *("tokenize.output=set", "tokenize.workers=0", "tokenize.progress=false"),
    ]
    assert main(command) == 0
    code = (importable / "color_grid.py").read_text()
    (importable / "color_grid.py").write_text(code.replace('levels, 1"', 'levels, 22"'))
    monkeypatch.delitem(sys.modules, "color_grid")
    assert main(command) == 2
    assert "set holds another set: vq.fingerprint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["vq.kind=stripes.Stripes"], "vq.kind=stripes.Stripes: not an image tokenizer"),
        (["vq.kind=tamming"], "vq.kind=tamming: no such image tokenizer; one of taming, or the import path"),
        (
            ["vq.kind=color_grid.ColorGrid", "++vq.options.size=3"],
            "vq.options={'size': 3}: ColorGrid: got an unexpected",
        ),
        (["++vq.options.size=3"], "vq.options={'size': 3}: vq.kind=taming takes none"),
        (
            ["vq.kind=color_grid.ColorGrid", "tokenize.precision=bf16"],
            "tokenize.precision=bf16: ColorGrid computes in fp32 only",
        ),
        (["tokenize.source=stripes.Spots"], "tokenize.source=stripes.Spots: module stripes has no Spots"),
        (
            ["tokenize.source=python_docs"],
            "tokenize.options={'images': 4}: tokenize.source=python_docs does not use it",
        ),
    ],
)
def test_what_cannot_work_is_told_in_one_line(
    importable: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], message: str
) -> None:
    usual = ["tokenize.source=stripes.Stripes", "++tokenize.options.images=4", f"tokenize.output={importable / 'set'}"]
    assert main(["tokenize", *usual, *overrides]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not (importable / "set").exists()


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("backbone.image_init=codebook", "backbone.image_init=codebook: ColorGrid has no code_vectors"),
        ("features.kind=vq", "features.kind=vq: ColorGrid has no features"),
    ],
)
def test_what_a_tokenizer_does_not_have_names_the_remedy(importable: Path, key: str, message: str) -> None:
    opened = open_image_tokenizer(VQSettings(kind="color_grid.ColorGrid"))
    with pytest.raises(ValueError, match=message):
        opened.code_vectors() if "image_init" in key else opened.features(torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("section", ["A data source", "An image tokenizer"])
def test_the_examples_stay_short(section: str) -> None:
    assert Example(PAGE, section).text.strip().count("\n") < 30


FAULTY = """
import numpy as np
from stripes import SourceRow, Stripes, partial
from liquid_train.image_tokenizer.preprocess import read_rgb

def draw(count):
    {line}

class Faulty(Stripes):
    def rows_from(self, name, start):
        for number in range(start, self.count(name)):
            yield SourceRow({{}}, partial(draw, number))
"""
# line -> what ends the job, and its message; None: every image is left out, and why
FAULTS: dict[str, tuple[type[Exception] | None, str]] = {
    "raise ValueError('a bug')": (ValueError, "a bug"),
    "return int('x')": (ValueError, "invalid literal"),
    "raise NotImplementedError('later')": (NotImplementedError, "later"),
    "return None": (TypeError, r"uint8 \[height, width, 3\], not NoneType"),
    "return np.zeros((64, 64, 3))": (TypeError, r"not float64 \[64, 64, 3\]"),
    "return np.zeros((64, 64), np.uint8)": (TypeError, r"not uint8 \[64, 64\]"),
    "raise OSError(5, 'Input/output error')": (None, "unreadable image: Input/output error"),
    "return read_rgb(b'no image')": (None, "not an image"),
}


@pytest.mark.parametrize("line", FAULTS)
def test_a_bug_of_ones_own_source_is_no_broken_image(
    line: str, importable: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends the job with its traceback, also from an encoder process; what is wrong with an image is counted."""
    error, message = FAULTS[line]
    (importable / "faulty.py").write_text(FAULTY.format(line=line))
    monkeypatch.delitem(sys.modules, "faulty", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(importable), prepend=":")
    workers = int(line == "return int('x')")
    settings = ["source=faulty.Faulty", f"output={importable / 'set'}", f"workers={workers}", "progress=false"]
    command = ["tokenize", *(f"tokenize.{setting}" for setting in settings), "++tokenize.options.images=3"]
    if error is None:
        assert main(command) == 2 and message in capsys.readouterr().err
        return
    with pytest.raises(error, match=message) as raised:
        main(command)
    if error is not TypeError:
        assert f'{importable / "faulty.py"}", line 7' in "".join(traceback.format_exception(raised.value))
