"""Image rows of a pretrained model: what each start gives them, and that ranks make the same ones apart as one does
alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from liquid_train.config.compose import load
from liquid_train.model import backbone
from liquid_train.model.backbone import ROW_BLOCK
from liquid_train.model.embedding_init import TextRows, codebook_rows, fill_image_rows, mean_rows
from liquid_train.model.settings import BackboneConfig
from liquid_train.vocabulary import Vocabulary, add_image_tokens
from tests.model.test_backbone import pretrained

CODES, WIDTH = 1500, 32


@pytest.fixture(scope="module")
def text() -> TextRows:
    table = torch.randn(400, WIDTH, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.5, 2, WIDTH) + 3
    return TextRows.of(table, 300)


@pytest.fixture(scope="module")
def codebook() -> Tensor:
    return torch.rand(CODES, 5, generator=torch.Generator().manual_seed(1)) * 9 - 2


def test_mean_and_variance_are_those_of_the_text_rows_alone() -> None:
    table = torch.randn(3000, 8, generator=torch.Generator().manual_seed(0)) + 5
    table[2500:] = 1e6
    found = TextRows.of(table, 2500)
    torch.testing.assert_close(found.mean, table[:2500].double().mean(0))
    torch.testing.assert_close(found.variance, table[:2500].double().var(0, correction=0))


def test_mean_rows_tell_codes_apart_and_no_more(text: TextRows) -> None:
    rows = mean_rows(text, 300, CODES, ("w", 0))
    spread = (rows - text.mean).std(0) / text.variance.sqrt()
    torch.testing.assert_close(spread, torch.full_like(spread, 1e-9**0.5), rtol=0.1, atol=0)
    assert len(rows.float().unique(dim=0)) == CODES


def test_codebook_rows_are_arranged_as_the_codebook(text: TextRows, codebook: Tensor) -> None:
    rows = codebook_rows(text, codebook, 0, CODES, ("w", 0))
    ratio = torch.pdist(rows) / torch.pdist(codebook.double())
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-6, atol=0)
    torch.testing.assert_close(rows.mean(0), text.mean)
    torch.testing.assert_close((rows - text.mean).square().sum(1).mean(), text.variance.sum())
    assert not torch.allclose(rows, codebook_rows(text, codebook, 0, CODES, ("w", 1)))


def test_a_codebook_wider_than_the_model_keeps_who_is_near(text: TextRows) -> None:
    wide = torch.randn(40, 64, generator=torch.Generator().manual_seed(0)).repeat_interleave(2, 0)
    wide[1::2] += 0.1  # pairs
    rows = codebook_rows(text, wide, 0, 80, ("w", 0))
    nearest = torch.cdist(rows, rows).fill_diagonal_(torch.inf).argmin(1)
    assert torch.equal(nearest, torch.arange(80) ^ 1)
    torch.testing.assert_close((rows - text.mean).square().sum(1).mean(), text.variance.sum())


@pytest.mark.parametrize("cuts", [(0, 700, CODES), (0, 3, ROW_BLOCK, ROW_BLOCK + 1, CODES)])
def test_rows_do_not_depend_on_how_they_are_cut(text: TextRows, codebook: Tensor, cuts: tuple[int, ...]) -> None:
    for make in (
        lambda a, n: codebook_rows(text, codebook, a, n, ("w", 0)),
        lambda a, n: mean_rows(text, a, n, ("w", 0)),
    ):
        parts = [make(a, b - a) for a, b in zip(cuts[:-1], cuts[1:], strict=True)]
        assert torch.equal(torch.cat(parts), make(0, CODES))


def test_rows_behind_the_last_code_are_the_mean(text: TextRows, codebook: Tensor) -> None:
    rows = codebook_rows(text, codebook, CODES - 10, 30, ("w", 0))
    assert torch.equal(rows[:10], codebook_rows(text, codebook, CODES - 10, 10, ("w", 0))) and torch.equal(
        rows[10:], text.mean.repeat(20, 1)
    )
    assert torch.equal(codebook_rows(text, codebook, CODES + 5, 3, ("w", 0)), text.mean.repeat(3, 1))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("spare_rows", [0, 100])
@pytest.mark.parametrize("image_init", ["mean", "normal", "codebook"])
def test_every_image_row_is_filled_and_no_text_row(
    tmp_path: Path, tied: bool, spare_rows: int, image_init: str
) -> None:
    folder = pretrained(tmp_path / "hub", "qwen2", tied, spare_rows)
    config: Any = backbone.model_config(BackboneConfig(path=str(folder)), 0)
    vocabulary = Vocabulary(add_image_tokens(folder, tmp_path / "renamed"), 64, config.vocab_size + 64)
    model: Any = backbone.build(config, vocabulary)
    backbone.materialize(model, torch.device("cpu"))
    backbone.fill_from_folder(model, folder)
    tables = {id(t): t for t in (model.get_input_embeddings().weight, model.get_output_embeddings().weight)}
    assert len(tables) == 2 - tied
    before = {k: t.detach().clone() for k, t in tables.items()}
    fill_image_rows(model, vocabulary, image_init, torch.randn(64, 5), seed=1)
    for key, table in tables.items():
        text, image = table.detach().tensor_split([vocabulary.text_size])
        assert torch.equal(text, before[key][: vocabulary.text_size])
        assert torch.isfinite(image).all() and len(image[:64].unique(dim=0)) == 64
        around = text.mean(0) if image_init != "normal" else torch.zeros(32)
        # text rows: initializer_range 0.2
        spread = {"mean": 0.2 * 1e-9**0.5, "normal": 0.2, "codebook": 0.2}[image_init]
        assert (image[:64] - around).square().mean().sqrt().item() == pytest.approx(spread, rel=0.1)


def test_an_unknown_start_is_refused() -> None:
    with pytest.raises(ValueError, match="backbone.image_init=zeros: one of mean, normal, codebook"):
        load("train", ["experiment=quickstart", "backbone.image_init=zeros"])
