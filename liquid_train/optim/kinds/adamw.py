"""AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101)."""

from __future__ import annotations

import torch

from liquid_train.errors import UserError
from liquid_train.optim.kinds import OPTIMIZERS, Groups, without_roles
from liquid_train.optim.settings import OptimizerConfig


@OPTIMIZERS.register("adamw")
def adamw(groups: Groups, settings: OptimizerConfig) -> torch.optim.Optimizer:
    """optimizer.betas and optimizer.eps are its own settings."""
    if settings.options:
        raise UserError(
            f"optimizer.options={settings.options}: optimizer.kind=adamw takes optimizer.betas and optimizer.eps"
        )
    first, second = settings.betas
    return torch.optim.AdamW(without_roles(groups), lr=settings.lr, betas=(first, second), eps=settings.eps, fused=True)
