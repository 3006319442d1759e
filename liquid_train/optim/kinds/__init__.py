"""Optimizers, one file a kind. optimizer.kind names one by its file here, or one of your own by its import path.

A kind is a subclass of torch.optim.Optimizer, which is called as Kind(groups, lr=optimizer.lr, **optimizer.options), or
a function of (groups, settings) that makes one. The groups (optimizer.py) already have their weight_decay.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from liquid_train.optim.settings import OptimizerConfig
from liquid_train.registry import Registry

if TYPE_CHECKING:  # the registry is read where a config is checked, without torch
    import torch

Groups = list[dict[str, Any]]  # parameter groups, as torch.optim has them
Kind = Callable[..., "torch.optim.Optimizer"]
Builder = Callable[[Groups, OptimizerConfig], "torch.optim.Optimizer"]

OPTIMIZERS: Registry[Kind] = Registry("liquid_train.optim.kinds", "optimizer")
