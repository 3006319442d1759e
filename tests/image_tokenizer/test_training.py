"""Training the small image tokenizer: its two documented commands in small."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from liquid_train.image_tokenizer.opening import open_image_tokenizer
from liquid_train.image_tokenizer.settings import VQSettings
from liquid_train.image_tokenizer.training import main


@pytest.mark.slow
def test_the_two_documented_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--levels", "2", "3", "--steps", "2", "--batch", "2"]
    for output, more in (("first", []), ("second", ["--start", str(tmp_path / "first"), "--smoothness", "0.005"])):
        monkeypatch.setattr(sys, "argv", ["training", "--output", str(tmp_path / output), *small, *more])
        main()
        assert "test PSNR" in capsys.readouterr().out
        opened = open_image_tokenizer(
            VQSettings(str(tmp_path / output / "vqgan.yaml"), str(tmp_path / output / "model.safetensors"))
        )
        assert opened.codebook_size == 6 and opened.downsampling == 8 and opened.resolution == 64
        assert sorted(opened.code_vectors().tolist()) == [[a, b] for a in (-0.5, 0.5) for b in (-1.0, 0.0, 1.0)]
