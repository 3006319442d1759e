"""Optimizers, one file a kind. optimizer.kind names one by its file here, or one of your own by its import path.

A kind is a subclass of torch.optim.Optimizer, which is called as Kind(groups, lr=optimizer.lr, **optimizer.options), or
a function of (groups, settings) that makes one. The groups (optimizer.py) already have their weight_decay; a function's
have a `role` as well.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from liquid_train.errors import UserError
from liquid_train.optim.settings import OptimizerConfig
from liquid_train.registry import Registry

if TYPE_CHECKING:  # the registry is read where a config is checked, without torch
    import torch

Groups = list[dict[str, Any]]  # parameter groups, as torch.optim has them
Kind = Callable[..., "torch.optim.Optimizer"]
Builder = Callable[[Groups, OptimizerConfig], "torch.optim.Optimizer"]


def without_roles(groups: Groups) -> Groups:
    """The groups as an optimizer keeps them that makes no difference between roles, in its checkpoints too."""
    return [{key: value for key, value in group.items() if key != "role"} for group in groups]


OPTIMIZERS: Registry[Kind] = Registry("liquid_train.optim.kinds", "optimizer")


def check_own_kind(settings: OptimizerConfig) -> None:
    """UserError where a user's own class is no optimizer, or does not take optimizer.options. Nothing is imported for
    the kinds of this package."""
    if settings.kind in OPTIMIZERS.names():
        return
    kind = OPTIMIZERS.find(settings.kind, "optimizer.kind")
    if not callable(kind):
        raise UserError(f"optimizer.kind={settings.kind}: not a class or function that makes an optimizer")
    if not isinstance(kind, type):
        return  # a function: what it makes is checked when it is made
    from torch.optim import Optimizer

    if not issubclass(kind, Optimizer):
        raise UserError(f"optimizer.kind={settings.kind}: not a subclass of torch.optim.Optimizer")
    try:
        inspect.signature(kind).bind([], lr=settings.lr, **settings.options)
    except TypeError as error:
        raise UserError(f"optimizer.options={settings.options}: {settings.kind} does not take them: {error}") from error
