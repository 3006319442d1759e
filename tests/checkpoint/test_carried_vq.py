"""The image tokenizer's files travel with a checkpoint."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from liquid_train.checkpoint.carried_vq import carry_vq
from liquid_train.checkpoint.export import export
from liquid_train.errors import UserError
from liquid_train.generate.session import open_model, open_vq
from liquid_train.image_tokenizer.opening import open_image_tokenizer
from liquid_train.image_tokenizer.settings import AUTO, VQSettings
from liquid_train.model.backbone import ModelCard
from tests.tiny_model import save
from tests.tiny_vq import CODEBOOK, make_vq


def test_files_are_copied_once_and_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_vq(tmp_path / "vq")
    relative = ModelCard(300, CODEBOOK, "f", "vq/vqgan.yaml", "vq/model.safetensors", [8, 8], " Draw.")
    models = [tmp_path / "run" / "checkpoints" / f"step-0000000{n}" / "model" for n in (1, 2)]
    for model in models:
        model.mkdir(parents=True)
        carry_vq(relative, model).write(model)
    weights = [model / "vq" / "model.safetensors" for model in models]
    assert os.path.samefile(*weights) and not os.path.samefile(weights[0], "vq/model.safetensors")
    shutil.rmtree("vq")
    (tmp_path / "run").rename(tmp_path / "moved")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    moved = Path("../moved/checkpoints/step-00000002/model")
    card = ModelCard.read(moved)
    assert open_image_tokenizer(card.vq).codebook_size == CODEBOOK and card.vq_checkpoint.startswith("../moved/")


def test_another_tokenizer_of_the_same_name_is_not_shared(tmp_path: Path) -> None:
    config, weights = (option.partition("=")[2] for option in make_vq(tmp_path / "vq"))
    card = ModelCard(300, CODEBOOK, "f", config, weights, [8, 8], " Draw.")
    for n in (1, 2):
        model = tmp_path / "run" / "checkpoints" / f"step-0000000{n}" / "model"
        model.mkdir(parents=True)
        carry_vq(card, model)
        os.utime(weights, ns=(n, n))
    assert not os.path.samefile(*(tmp_path / "run").glob("**/model.safetensors"))


def test_files_of_the_package_are_not_copied(tmp_path: Path) -> None:
    card = ModelCard(300, 1024, "f", VQSettings().config, VQSettings().checkpoint, [8, 8], " Draw.")
    assert carry_vq(card, tmp_path) == card and not list(tmp_path.iterdir())


def test_an_exported_model_keeps_its_tokenizer(tmp_path: Path) -> None:
    make_vq(tmp_path / "vq")
    source = tmp_path / "model"
    save(source)
    card = replace(
        ModelCard.read(source),
        vq_config=str(tmp_path / "vq" / "vqgan.yaml"),
        vq_checkpoint=str(tmp_path / "vq" / "model.safetensors"),
    )
    carry_vq(card, source).write(source)
    export(source, tmp_path / "exported")
    shutil.rmtree(source)
    shutil.rmtree(tmp_path / "vq")
    assert open_image_tokenizer(ModelCard.read(tmp_path / "exported").vq).codebook_size == CODEBOOK


def test_a_card_whose_files_are_not_here_says_whose_they_are(tmp_path: Path) -> None:
    save(tmp_path / "model")
    replace(ModelCard.read(tmp_path / "model"), vq_config="vq/vqgan.yaml").write(tmp_path / "model")
    session = open_model(tmp_path / "model", "cpu")
    with pytest.raises(UserError, match="vq.config=vq/vqgan.yaml: no such file here; the checkpoint's liquid.json"):
        open_vq(session, VQSettings(AUTO, AUTO, AUTO))
