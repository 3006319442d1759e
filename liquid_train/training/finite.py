"""Whether a model may be saved: weights and optimizer state that are numbers, on every rank.

A step whose loss and gradients are finite can still make weights that are not: a learning rate or a decay that is far
too high, a moment that overflows. No later step repairs them, and a checkpoint of them would take the place of a good
one.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from liquid_train.distributed.parallelize import World


@torch.no_grad()
def all_finite(root: nn.Module, optimizer: torch.optim.Optimizer, world: World) -> bool:
    """Whether no value of the weights and of the optimizer's state is inf or NaN, on any rank; a collective. Each value
    is read once, and nothing as large as a tensor is allocated."""
    state = [value for held in optimizer.state.values() for value in held.values() if isinstance(value, Tensor)]
    extremes: list[Tensor] = []
    for tensor in [*root.parameters(), *state]:
        own = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        if own.numel() and own.is_floating_point():
            extremes += [value.to(world.device, torch.float32) for value in torch.aminmax(own)]
    finite = torch.stack(extremes).isfinite().all() if extremes else torch.tensor(True, device=world.device)
    agreed = finite.to(torch.int32)
    dist.all_reduce(agreed, op=dist.ReduceOp.MIN)
    return bool(agreed)
