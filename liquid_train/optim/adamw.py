"""AdamW and its parameter groups."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from liquid_train.optim.row_rates import token_tables
from liquid_train.optim.settings import OptimizerConfig


def build_optimizer(lm: PreTrainedModel, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101); norms and biases (one-dimensional) do not decay.

    Groups: embedding and head, other matrices, vectors.
    """
    tables = token_tables(lm)
    matrices = [p for p in lm.parameters() if p.ndim > 1 and not any(p is table for table in tables)]
    vectors = [p for p in lm.parameters() if p.ndim <= 1]
    decays = ((tables, config.weight_decay), (matrices, config.weight_decay), (vectors, 0.0))
    groups = [{"params": parameters, "weight_decay": decay} for parameters, decay in decays]
    first, second = config.betas
    return torch.optim.AdamW(groups, lr=config.lr, betas=(first, second), eps=config.eps, fused=True)
