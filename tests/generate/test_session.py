"""Which image tokenizer a session opens: what the model was trained with, wherever the settings say `auto`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from liquid_train.generate.session import as_trained
from liquid_train.image_tokenizer.settings import VQSettings
from liquid_train.model.backbone import ModelCard

OWN = {"vq_kind": "mine.Grid", "vq_options": {"levels": 2}}


def card(**more: object) -> ModelCard:
    return ModelCard(300, 64, "f", "its.yaml", "its.ckpt", [8, 8], " suffix", **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("asked", "trained", "opened"),
    [
        (("auto", "auto", "auto"), {}, ("its.yaml", "its.ckpt", "taming", {})),
        (("auto", "auto", "auto"), OWN, ("its.yaml", "its.ckpt", "mine.Grid", {"levels": 2})),
        (("auto", "auto"), OWN, ("its.yaml", "its.ckpt", "mine.Grid", {"levels": 2})),
        (("a.yaml", "a.ckpt"), OWN, ("a.yaml", "a.ckpt", "taming", {})),
        (("auto", "b.ckpt", "auto"), {}, ("its.yaml", "b.ckpt", "taming", {})),
        (("auto", "auto", "auto", {"levels": 3}), OWN, ("its.yaml", "its.ckpt", "mine.Grid", {"levels": 3})),
        (("auto", "auto", "other.Grid"), OWN, ("its.yaml", "its.ckpt", "other.Grid", {})),
    ],
)
def test_auto_is_as_trained(asked: tuple[str, ...], trained: dict[str, object], opened: tuple[object, ...]) -> None:
    vq = as_trained(VQSettings(*asked), card(**trained))  # type: ignore[arg-type]
    assert (vq.config, vq.checkpoint, vq.kind, vq.options) == opened


def test_the_card_names_the_kind_only_where_it_is_another(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "COMMIT.json").write_text("{}")  # a checkpoint's: only there may a card name code to import
    card().write(folder)
    assert not {"vq_kind", "vq_options"} & json.loads((folder / "liquid.json").read_text()).keys()
    assert ModelCard.read(folder) == card()
    card(**OWN).write(folder)
    assert ModelCard.read(folder).vq == VQSettings("its.yaml", "its.ckpt", "mine.Grid", {"levels": 2})
