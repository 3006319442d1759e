"""Optimizer and learning rate: settings."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class OptimizerConfig:
    lr: float = 1e-3
    weight_decay: float = 0.1
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    eps: float = 1e-8
    grad_clip: float = 1.0
    image_embedding_lr_scale: float = 1.0  # learning rate of the image rows of embedding and head, relative to lr
    # a first stage of so many steps trains the rows that a published checkpoint lacks, and nothing else
    new_rows_steps: int = 0


@dataclass
class ScheduleConfig:
    kind: str = "cosine"  # cosine, constant or wsd
    warmup: float = 0.03  # share of the steps, or their number from 1 on
    decay: float = 0.2  # wsd: share of the steps at the end, or their number from 1 on
    min_lr: float = 0.0  # as a share of optimizer.lr
