"""The optimizer of a model: its parameter groups, its kind, and the memory that its state takes."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from liquid_train.errors import UserError
from liquid_train.optim.kinds import OPTIMIZERS, Groups, without_roles
from liquid_train.optim.row_rates import token_tables
from liquid_train.optim.settings import OptimizerConfig


def parameter_groups(lm: PreTrainedModel, weight_decay: float) -> Groups:
    """Three groups, with their `role`: `table` (embedding and head), `matrix` (the other matrices), `vector` (norms and
    biases, which do not decay)."""
    tables = token_tables(lm)
    matrices = [p for p in lm.parameters() if p.ndim > 1 and not any(p is table for table in tables)]
    vectors = [p for p in lm.parameters() if p.ndim <= 1]
    kinds = (("table", tables, weight_decay), ("matrix", matrices, weight_decay), ("vector", vectors, 0.0))
    return [{"role": role, "params": parameters, "weight_decay": decay} for role, parameters, decay in kinds]


def build_optimizer(lm: PreTrainedModel, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimizer of optimizer.kind over the model's parameter_groups. Raises UserError for a kind that is none."""
    return _build(parameter_groups(lm, config.weight_decay), config)


def state_bytes(groups: Groups, config: OptimizerConfig) -> int:
    """Bytes of the optimizer's state for the parameters of these groups (on meta, or one rank's parts), found by a step
    on a small stand-in for each number of dimensions: tensors of a parameter's shape grow with it, others do not."""
    found = 0
    for group in groups:
        for ndim in {p.ndim for p in group["params"]}:
            stand_in = torch.nn.Parameter(torch.zeros([4] * ndim))
            stand_in.grad = torch.zeros_like(stand_in)
            optimizer = _build([{**group, "params": [stand_in]}], config)
            optimizer.step()
            own = [p for p in group["params"] if p.ndim == ndim]
            elements = sum(p.numel() for p in own)
            for tensor in (value for value in optimizer.state[stand_in].values() if isinstance(value, Tensor)):
                same = tensor.shape == stand_in.shape
                found += tensor.element_size() * (elements if same else tensor.numel() * len(own))
    return found


def _build(groups: Groups, config: OptimizerConfig) -> torch.optim.Optimizer:
    kind = OPTIMIZERS.find(config.kind, "optimizer.kind")
    arguments = {"lr": config.lr, **config.options}
    optimizer = kind(without_roles(groups), **arguments) if isinstance(kind, type) else kind(groups, config)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UserError(
            f"optimizer.kind={config.kind}: not a torch.optim.Optimizer, nor a function of parameter groups and "
            "settings that makes one"
        )
    return optimizer
