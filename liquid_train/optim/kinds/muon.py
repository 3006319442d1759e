"""Muon (Jordan et al. 2024) on the blocks' matrices, AdamW on everything else.

A matrix's momentum is replaced by its orthogonal factor before it is added, so that all directions of the matrix learn
at one pace, rare ones too. Rates are AdamW's: the factor is scaled by 0.2 sqrt(max(rows, columns)), which gives it the
root mean square of AdamW's update (Liu et al. 2025, Muon is Scalable for LLM Training, arXiv 2502.16982, section 2.2).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from liquid_train.errors import UserError
from liquid_train.optim.kinds import OPTIMIZERS, Groups
from liquid_train.optim.newton_schulz import orthogonalize
from liquid_train.optim.settings import OptimizerConfig

RMS = 0.2  # of an update of AdamW, about


@OPTIMIZERS.register("muon")
def muon(groups: Groups, settings: OptimizerConfig) -> torch.optim.Optimizer:
    """optimizer.betas and optimizer.eps are AdamW's; optimizer.options.momentum is Muon's, 0.95."""
    options = {"momentum": 0.95, **settings.options}
    momentum = options["momentum"]
    if set(options) != {"momentum"} or isinstance(momentum, bool) or not isinstance(momentum, int | float):
        raise UserError(f"optimizer.options={settings.options}: optimizer.kind=muon takes momentum, a number")
    if not 0 <= momentum < 1:
        raise UserError(f"optimizer.options.momentum={momentum}: from 0 to below 1; 0.95 is usual")
    return Muon(groups, settings, momentum)


class Muon(torch.optim.AdamW):
    """Groups whose role is `matrix` hold one state tensor a parameter, `momentum`; all others are AdamW's.

    A matrix that FSDP has cut over ranks is gathered on one of them, and its update scattered; the ranks of a group
    take one matrix each at a time. Raises UserError for matrices that are cut in another way (tensor parallelism).
    """

    def __init__(self, groups: Groups, settings: OptimizerConfig, momentum: float) -> None:
        first, second = settings.betas
        super().__init__(
            [{**group, "momentum": momentum if group["role"] == "matrix" else 0.0} for group in groups],
            lr=settings.lr,
            betas=(first, second),
            eps=settings.eps,
            fused=True,
        )
        for group in self.param_groups:
            for parameter in group["params"] if group["role"] == "matrix" else []:
                _shard_group(parameter)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is None
        held: list[tuple[Tensor, Tensor]] = []
        for group in self.param_groups:
            if group["role"] == "matrix":
                matrices = [(p, p.grad) for p in group["params"] if p.grad is not None]
                self._step_matrices(group, matrices)
                held += matrices
        for parameter, _ in held:
            parameter.grad = None  # AdamW passes over it
        super().step()
        for parameter, gradient in held:
            parameter.grad = gradient

    def _step_matrices(self, group: dict[str, Any], matrices: Iterable[tuple[Tensor, Tensor]]) -> None:
        """p <- (1 - lr decay) p - lr 0.2 sqrt(max(rows, columns)) orthogonalize(g + momentum (m - g))."""
        alike: defaultdict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for parameter, gradient in matrices:
            state = self.state[parameter]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(gradient)
            momentum = state["momentum"]
            momentum.lerp_(gradient, 1 - group["momentum"])
            alike[parameter.shape].append((parameter, gradient.lerp(momentum, group["momentum"])))
        for shape, updates in alike.items():
            rate = group["lr"] * RMS * math.sqrt(max(shape))
            for (parameter, _), factor in zip(updates, _factors(updates), strict=True):
                own = parameter.to_local() if isinstance(parameter, DTensor) else parameter
                own.mul_(1 - group["lr"] * group["weight_decay"]).sub_(rate * factor)


def _shard_group(parameter: Tensor) -> dist.ProcessGroup | None:
    """The ranks that share a matrix by rows, None where this one has all of it."""
    if not isinstance(parameter, DTensor):
        return None
    cut = [i for i, placement in enumerate(parameter.placements) if not placement.is_replicate()]
    if not cut or (len(cut) == 1 and parameter.device_mesh.size(cut[0]) == 1):
        return None
    if len(cut) > 1 or parameter.placements[cut[0]] != Shard(0):
        raise UserError(
            "optimizer=muon: not with parallel.tensor above 1 yet; choose parallel.tensor=1 or optimizer=adamw"
        )
    return parameter.device_mesh.get_group(cut[0])


def _factors(updates: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """This rank's rows of the orthogonal factor of each update; all matrices are of one shape. A collective."""
    parameter, update = updates[0]
    group = _shard_group(parameter)
    dtype = torch.bfloat16 if update.device.type == "cuda" else torch.float32
    own = [u.to_local() if isinstance(u, DTensor) else u for _, u in updates]
    if group is None:
        return list(orthogonalize(torch.stack(own), dtype))
    ranks, rank = dist.get_world_size(group), dist.get_rank(group)
    rows, columns = parameter.shape
    per_rank = -(-rows // ranks)  # as torch.chunk cuts them: the last ranks may have fewer, or none
    sizes = [max(0, min(per_rank, rows - r * per_rank)) * columns for r in range(ranks)]
    factors: list[Tensor] = []
    for start in range(0, len(own), ranks):  # rank r gathers matrix start + r
        now = own[start : start + ranks]
        mine = rank < len(now)
        send = [len(u.flatten()) for u in now] + [0] * (ranks - len(now))
        receive = sizes if mine else [0] * ranks
        whole = own[0].new_empty(sum(receive))
        dist.all_to_all_single(whole, torch.cat([u.flatten() for u in now]), receive, send, group)
        if mine:
            whole = orthogonalize(whole.view(1, rows, columns), dtype).flatten()
        back = own[0].new_empty(sum(send))
        dist.all_to_all_single(back, whole, send, receive, group)
        factors += [part.view_as(u) for part, u in zip(back.split(send), now, strict=False)]
    return factors
