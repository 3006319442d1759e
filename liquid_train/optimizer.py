"""AdamW's parameter groups, and the learning rate as a function of the step."""

from __future__ import annotations

import math

import torch
from torch import nn

from liquid_train.config import OptimizerConfig, ScheduleConfig


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101); norms and biases (one-dimensional) do not decay."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    first, second = config.betas
    return torch.optim.AdamW(groups, lr=config.lr, betas=(first, second), eps=config.eps, fused=True)


def learning_rate(step: int, steps: int, peak: float, schedule: ScheduleConfig) -> float:
    """Learning rate of 0-based `step` out of `steps`: linear warmup, then cosine, constant, or constant with a linear decay at the end (wsd)."""
    warmup = round(schedule.warmup * steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    floor = schedule.min_lr
    if schedule.kind == "constant":
        return peak
    if schedule.kind == "wsd":
        begin = steps - round(schedule.decay * steps)
        share = 1.0 if step < begin else 1 - (step - begin) / max(1, steps - begin)
        return peak * (floor + (1 - floor) * share)
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
