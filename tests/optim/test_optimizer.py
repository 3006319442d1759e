"""Which optimizer is built, over which groups, and what its state takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from liquid_train.errors import UserError
from liquid_train.optim.kinds import check_own_kind
from liquid_train.optim.optimizer import build_optimizer, state_bytes
from liquid_train.optim.settings import OptimizerConfig
from tests.tiny_model import tiny

HERE = __name__


class OneMoment(torch.optim.Optimizer):
    """Its state: one number a weight in bf16, and a count of 8 bytes a parameter."""

    def __init__(self, params: Any, lr: float, speed: int = 1) -> None:
        super().__init__(params, {"lr": lr, "speed": speed})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for p in (p for group in self.param_groups for p in group["params"]):
            self.state[p] = {"moment": torch.zeros_like(p, dtype=torch.bfloat16), "count": torch.tensor(0)}


def by_settings(groups: Any, settings: OptimizerConfig) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.betas[0])


def nothing(groups: Any, settings: OptimizerConfig) -> None: ...


def test_groups_and_settings(tmp_path: Path) -> None:
    model, _ = tiny(tmp_path)
    found = build_optimizer(model, OptimizerConfig(weight_decay=0.3, betas=[0.8, 0.9], eps=1e-6))
    assert isinstance(found, torch.optim.AdamW) and [g["weight_decay"] for g in found.param_groups] == [0.3, 0.3, 0.0]
    assert found.defaults["betas"] == (0.8, 0.9) and found.defaults["eps"] == 1e-6
    tables, matrices, vectors = (group["params"] for group in found.param_groups)
    assert len(tables) == 2 and {p.ndim for p in matrices} == {2} and {p.ndim for p in vectors} == {1}
    assert sum(map(len, (tables, matrices, vectors))) == len(list(model.parameters()))
    own = build_optimizer(model, OptimizerConfig(kind=f"{HERE}.OneMoment", lr=0.5, options={"speed": 3}))
    assert isinstance(own, OneMoment) and own.defaults == {"lr": 0.5, "speed": 3} and len(own.param_groups) == 3
    made = build_optimizer(model, OptimizerConfig(kind=f"{HERE}.by_settings"))
    assert isinstance(made, torch.optim.SGD) and made.defaults["momentum"] == 0.9


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"kind": "nothing"}, "optimizer.kind=nothing: no such optimizer; one of .*adamw"),
        ({"kind": "adamw", "options": {"speed": 1}}, "optimizer.options={'speed': 1}: optimizer.kind=adamw takes"),
        ({"kind": f"{HERE}.nothing"}, "not a torch.optim.Optimizer"),
    ],
)
def test_what_is_refused(settings: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        build_optimizer(tiny(tmp_path)[0], OptimizerConfig(**settings))


def test_a_users_own_is_checked_before_anything_is_built() -> None:
    check_own_kind(OptimizerConfig())
    check_own_kind(OptimizerConfig(kind=f"{HERE}.OneMoment", options={"speed": 2}))
    check_own_kind(OptimizerConfig(kind=f"{HERE}.by_settings"))
    with pytest.raises(UserError, match="OneMoment does not take them: .*'haste'"):
        check_own_kind(OptimizerConfig(kind=f"{HERE}.OneMoment", options={"haste": 2}))
    with pytest.raises(UserError, match="optimizer.kind=numpy.ndarray: not a subclass of torch.optim.Optimizer"):
        check_own_kind(OptimizerConfig(kind="numpy.ndarray"))


def test_bytes_of_the_state() -> None:
    parameters = [torch.empty(7, 5, device="meta"), torch.empty(3, 2, device="meta"), torch.empty(11, device="meta")]
    groups = [{"role": "matrix", "params": parameters, "weight_decay": 0.1}]
    assert state_bytes(groups, OptimizerConfig()) == 2 * 4 * (35 + 6 + 11) + 3 * 4
    assert state_bytes(groups, OptimizerConfig(kind=f"{HERE}.OneMoment")) == 2 * (35 + 6 + 11) + 3 * 8
