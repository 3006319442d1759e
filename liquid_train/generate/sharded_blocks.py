"""The blocks of a sharded model, lent to a plain one block by block: for a model that no rank can hold whole.

Ranks answer other questions and need their blocks at other times, while gathering a block takes all ranks of the mesh.
So they work in rounds: each says which block it waits for, the one that is waited for most is gathered by all, and who
waited for it computes with it. A rank that has finished takes part until all have (`settle`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class SharedBlocks:
    """sharded: what FSDP wraps. plain: the same blocks of a plain model, on meta; their forward passes are collectives
    from now on."""

    def __init__(self, sharded: Sequence[Any], plain: Sequence[nn.Module]) -> None:
        self.sharded = list(sharded)
        self._empty = [dict(block.named_parameters()) for block in plain]
        self._waited = 0  # rounds in which another block was gathered: else two ranks in step would keep out a third
        for number, block in enumerate(plain):
            block.register_forward_pre_hook(partial(self._fetch, number))
            block.register_forward_hook(partial(self._give_back, number))

    @torch.inference_mode(False)
    @torch.no_grad()
    def settle(self) -> None:
        """Take part in the rounds until no rank waits for a block. All ranks must call it before anything else that
        they do together."""
        while self._round(None) is not None:
            pass

    @torch.inference_mode(False)  # whoever generates is in it, and what FSDP gathers into must not be
    @torch.no_grad()
    def _fetch(self, number: int, block: nn.Module, _: Any) -> None:
        while self._round(number) != number:
            self._waited += 1
        self._waited = 0
        weights = {name: whole(p) for name, p in self.sharded[number].named_parameters()}
        block.load_state_dict(weights, strict=False, assign=True)
        block.requires_grad_(False)

    def _give_back(self, number: int, block: nn.Module, _: Any, __: Any) -> None:
        block.load_state_dict(self._empty[number], strict=False, assign=True)
        self.sharded[number].reshard()

    def _round(self, wanted: int | None) -> int | None:
        """The block that is gathered now, None where no rank wants any. It stays gathered where it is the wanted
        one."""
        votes = torch.zeros(len(self.sharded), dtype=torch.int64)  # on the host
        if wanted is not None:
            votes[wanted] = 1 + self._waited
        dist.all_reduce(votes)
        counts = votes.tolist()
        if not any(counts):
            return None
        chosen = counts.index(max(counts))
        self.sharded[chosen].unshard()
        if chosen != wanted:
            for parameter in self.sharded[chosen].parameters():
                whole(parameter)  # with tensor parallelism the neighbours' part of the same collective
            self.sharded[chosen].reshard()
        return int(chosen)


def whole(parameter: Tensor) -> Tensor:
    """A gathered parameter; the parts of tensor-parallel ranks are put together, which copies; then a collective."""
    return (parameter.full_tensor() if isinstance(parameter, DTensor) else parameter).detach()
