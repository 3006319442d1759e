"""Learning rates of single rows of embedding and head."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from liquid_train.optim.optimizer import build_optimizer
from liquid_train.optim.row_rates import RowRates
from liquid_train.optim.settings import OptimizerConfig
from liquid_train.vocabulary import Vocabulary
from tests.tiny_model import tiny

LR = 0.01


def one_step(folder: Path, tied: bool, **options: float) -> tuple[PreTrainedModel, Vocabulary, dict[str, torch.Tensor]]:
    """One optimizer step on made-up gradients -> (model, vocabulary, how far each parameter moved)."""
    model, vocabulary = tiny(folder)
    model = model.train().requires_grad_(True)
    if tied:
        model.get_output_embeddings().weight = model.get_input_embeddings().weight
    config = OptimizerConfig(lr=LR, weight_decay=0.1, **options)  # type: ignore[arg-type]
    optimizer, rates = build_optimizer(model, config), RowRates(model, vocabulary, config)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    rates.mask_gradients(0)
    rates.step(optimizer, 0, LR)
    return model, vocabulary, {name: p.detach() - before[name] for name, p in model.named_parameters()}


@pytest.mark.parametrize("tied", [False, True])
def test_image_rows_have_a_rate_of_their_own(tmp_path: Path, tied: bool) -> None:
    _, vocabulary, moved = one_step(tmp_path / "a", tied)
    _, _, slow = one_step(tmp_path / "b", tied, image_embedding_lr_scale=0.25)
    image = slice(vocabulary.image_start, vocabulary.image_end)
    for name in moved:
        expected = moved[name].clone()
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            assert moved[name][image].abs().min() > 0
            expected[image] *= 0.25
        torch.testing.assert_close(slow[name], expected, atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("tied", [False, True])
def test_the_first_stage_moves_new_rows_alone(tmp_path: Path, tied: bool) -> None:
    _, vocabulary, moved = one_step(tmp_path / "a", tied, new_rows_steps=1)
    new = torch.zeros(vocabulary.rows, dtype=torch.bool)
    new[vocabulary.image_start : vocabulary.image_end] = True
    new[[vocabulary.boi, vocabulary.eoi, vocabulary.unconditional]] = True
    for name, by in moved.items():
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            assert by[new].abs().min() > 0 and not by[~new].any()
        else:
            assert not by.any(), name
