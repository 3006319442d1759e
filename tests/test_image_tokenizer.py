"""The image tokenizer against the published program's answers, and the shipped small one against its promise."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from data_prep.easy_vqa import load_split
from liquid_train.image_tokenizer import ImageTokenizer, VQConfig
from tests.shard_sets import WEIGHTS

REFERENCE = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "vqgan_reference"
needs_reference = pytest.mark.skipif(not REFERENCE.is_dir(), reason="no reference data beside this checkout")


def pixels(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None].float() / 127.5 - 1


@needs_reference
def test_codes_and_pictures_equal_the_published_program() -> None:
    model = ImageTokenizer.from_files(REFERENCE / "vqgan.yaml", REFERENCE / "vqgan.ckpt")
    for i, expected in enumerate(json.loads((REFERENCE / "codes.json").read_text())):
        codes = model.encode(pixels(REFERENCE / f"input_{i}.png"))
        assert codes.flatten().tolist() == expected["codes"]
        decoded = ((model.decode(codes).clamp(-1, 1) + 1) * 127.5).round()
        reference = ((pixels(REFERENCE / f"decoded_{i}.png") + 1) * 127.5).round()
        assert (decoded - reference).abs().max().item() <= 1


@needs_reference
def test_fingerprint_is_the_same_for_ckpt_and_safetensors(tmp_path: Path) -> None:
    state = torch.load(REFERENCE / "vqgan.ckpt", weights_only=True)["state_dict"]
    save_file(state | {"loss.discriminator": torch.ones(3)}, tmp_path / "model.safetensors")
    a = ImageTokenizer.from_files(REFERENCE / "vqgan.yaml", REFERENCE / "vqgan.ckpt")
    b = ImageTokenizer.from_files(REFERENCE / "vqgan.yaml", tmp_path / "model.safetensors", parts=("encoder",))
    assert a.fingerprint == b.fingerprint


def test_shipped_tokenizer_keeps_its_promise() -> None:
    """64 codes an image, 512 entries or more, under 2 MB, 31 dB or better on test images (a tenth of them here)."""
    model = ImageTokenizer.from_files(WEIGHTS / "vqgan.yaml", WEIGHTS / "model.safetensors")
    images = torch.cat([pixels(i.path) for i in load_split("test")[::10]])
    codes = model.encode(images)
    assert codes.shape == (100, 8, 8) and model.codebook_size >= 512 and model.downsampling == 8
    decoded = ((model.decode(codes).clamp(-1, 1) + 1) * 127.5).round()
    error = (decoded - (images + 1) * 127.5).square().mean().item()
    assert 10 * math.log10(255**2 / error) >= 31.0
    assert sum(f.stat().st_size for f in WEIGHTS.iterdir()) < 2e6


def test_any_change_of_weights_or_sizes_changes_the_fingerprint(tmp_path: Path) -> None:
    state = load_file(WEIGHTS / "model.safetensors")
    state["decoder.conv_out.bias"][0] += 1e-3
    save_file(state, tmp_path / "model.safetensors")
    shipped = ImageTokenizer.from_files(WEIGHTS / "vqgan.yaml", WEIGHTS / "model.safetensors")
    assert ImageTokenizer.from_files(WEIGHTS / "vqgan.yaml", tmp_path / "model.safetensors").fingerprint != shipped.fingerprint


def test_bad_files_are_told_in_one_message(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        ImageTokenizer.from_files(tmp_path / "none.yaml", WEIGHTS / "model.safetensors")
    (tmp_path / "bad.ckpt").write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match="cannot|not a checkpoint"):
        ImageTokenizer.from_files(WEIGHTS / "vqgan.yaml", tmp_path / "bad.ckpt")
    other = yaml.safe_load((WEIGHTS / "vqgan.yaml").read_text())
    other["model"]["params"]["n_embed"] = 512
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(other))
    with pytest.raises(ValueError, match="does not fit"):
        ImageTokenizer.from_files(tmp_path / "other.yaml", WEIGHTS / "model.safetensors")
    model = ImageTokenizer(VQConfig.from_yaml(WEIGHTS / "vqgan.yaml"))
    with pytest.raises(ValueError, match="multiples of 8"):
        model.encode(torch.zeros(1, 3, 60, 64))
