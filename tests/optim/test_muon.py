"""Muon against torch.optim.Muon, and what it takes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from liquid_train.errors import UserError
from liquid_train.optim.newton_schulz import orthogonalize
from liquid_train.optim.optimizer import build_optimizer, parameter_groups, state_bytes
from liquid_train.optim.settings import OptimizerConfig
from tests.tiny_model import tiny

SHAPES = [(32, 32), (48, 16), (16, 48)]


def given(steps: int) -> list[list[torch.Tensor]]:
    """Gradients of `steps` steps for one matrix of each shape."""
    generator = torch.Generator().manual_seed(0)
    return [[torch.randn(shape, generator=generator) for shape in SHAPES] for _ in range(steps)]


def train(optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter], steps: int = 4) -> None:
    for gradients in given(steps):
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()


def test_the_update_is_that_of_torch() -> None:
    """torch's iteration runs in bf16, which moves an update by up to about 1% of its size; ours, in the same precision,
    agrees to 1e-5 on one matrix."""
    ours, theirs = ([torch.nn.Parameter(torch.ones(shape)) for shape in SHAPES] for _ in range(2))
    settings = OptimizerConfig(kind="muon", lr=0.01, weight_decay=0.1)
    from liquid_train.optim.kinds.muon import muon

    train(muon([{"role": "matrix", "params": ours, "weight_decay": 0.1}], settings), ours)
    reference = torch.optim.Muon(theirs, lr=0.01, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    train(reference, theirs)
    for own, their in zip(ours, theirs, strict=True):
        moved = (their - 1).norm()
        assert (own - their).norm() < 0.02 * moved
    matrix = given(1)[0][2]
    single = torch.nn.Parameter(torch.zeros(SHAPES[2]))
    single.grad = matrix
    torch.optim.Muon([single], lr=1.0, weight_decay=0.0, momentum=0.0, nesterov=False).step()
    assert torch.allclose(-single.detach(), orthogonalize(matrix[None], torch.bfloat16)[0], atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_come_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(orthogonalize(matrix))
    assert values.min() > 0.6 and values.max() < 1.25
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    cosine = (orthogonalize(matrix) * (u @ v)).sum((1, 2)) / math.sqrt(min(shape)) / values.norm(dim=1)
    assert (cosine > 0.97).all()
    assert torch.equal(orthogonalize(torch.zeros(1, *shape)), torch.zeros(1, *shape))


def test_matrices_alone_are_orthogonalized(tmp_path: Path) -> None:
    model, _ = tiny(tmp_path)
    settings = OptimizerConfig(kind="muon", lr=1e-3)
    optimizer = build_optimizer(model, settings)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    assert all(p.grad is not None for p in model.parameters())
    tables, matrices, vectors = (group["params"] for group in optimizer.param_groups)
    assert all(set(optimizer.state[p]) == {"momentum"} for p in matrices)
    assert all(set(optimizer.state[p]) == {"step", "exp_avg", "exp_avg_sq"} for p in [*tables, *vectors])
    expected = sum(p.numel() for p in matrices) * 4 + sum(p.numel() * 8 + 4 for p in [*tables, *vectors])
    assert state_bytes(parameter_groups(model, 0.1), settings) == expected


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"speed": 1}, r"optimizer.options=\{'speed': 1\}: optimizer.kind=muon takes momentum"),
        ({"momentum": 1.0}, "optimizer.options.momentum=1.0: from 0 to below 1"),
        ({"momentum": "fast"}, "momentum, a number"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        build_optimizer(tiny(tmp_path)[0], OptimizerConfig(kind="muon", options=options))
