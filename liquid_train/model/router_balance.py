"""The load-balancing loss of mixture-of-experts models, added where each router computes its gates.

Of one layer and one row of S tokens: E * sum over the experts of f * P, where f is the share of the tokens that are
sent to an expert, counted once for each of the k experts that a token is sent to, and P the mean of the router's
softmax (Fedus et al. 2021, arXiv 2101.03961, equations 4 to 6); k for a perfect balance. It is averaged over the rows
of the global batch, so that it does not depend on ranks or micro-batches, and over the layers, so that
router_aux_loss_coef weighs as much as in transformers, which pools all layers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from liquid_train.errors import UserError
from liquid_train.model.settings import LossConfig


class WithGradient(torch.autograd.Function):
    """(gates, loss) -> gates, unchanged; the backward gives `loss` the gradient `weight`.

    So the loss of a layer needs no way out of its block: it works inside activation checkpoints and compiled graphs.
    """

    @staticmethod
    def forward(ctx: Any, gates: Tensor, loss: Tensor, weight: float) -> Tensor:
        ctx.weight, ctx.dtype = weight, loss.dtype
        return gates.view_as(gates)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        return grad, torch.full((), ctx.weight, dtype=ctx.dtype, device=grad.device), None


class RouterBalance:
    """The balancing loss of all routers of a model.

    weight: of the mean over rows and layers. rows: of the global batch. ranks: over which FSDP averages gradients, so
    that the loss is multiplied by their number.
    """

    def __init__(
        self, routers: list[nn.Module], index: int, top_k: int, *, weight: float, rows: int, ranks: int
    ) -> None:
        self.index, self.top_k = index, top_k
        self._parts = rows * len(routers)
        self._scale = weight * ranks / self._parts
        self._inside: Tensor | None = None
        self._sum: Tensor | None = None
        for router in routers:
            router.register_forward_hook(self._add)

    def begin(self, inside: Tensor) -> None:
        """A forward pass begins. inside [rows, tokens]: whether a token is a document's, not padding."""
        self._inside = inside

    def take(self, device: torch.device) -> Tensor:
        """This rank's part of the global batch's mean since the last call, fp64 []; 0 inside compiled blocks, which
        cannot tell it."""
        found, self._sum = self._sum, None
        return torch.zeros((), dtype=torch.float64, device=device) if found is None else found / self._parts

    def _add(self, _: nn.Module, __: Any, output: Any) -> Any:
        """Forward hook of a router."""
        if self._inside is None or not torch.is_grad_enabled():
            return output
        parts, at = (list(output), self.index) if isinstance(output, tuple) else ([output], 0)
        loss = balance(parts[at], self._inside, self.top_k)
        # an activation checkpoint computes the block again in the backward
        if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() == -1:
            value = loss.detach().double()
            self._sum = value if self._sum is None else self._sum + value
        gates = [i for i, part in enumerate(parts) if torch.is_tensor(part) and part.is_floating_point() and i != at]
        carrier = (gates or [at])[-1]  # what the block goes on to compute with
        parts[carrier] = WithGradient.apply(parts[carrier], loss, self._scale)  # type: ignore[no-untyped-call]
        return type(output)(parts) if isinstance(output, tuple) else parts[0]


def balance(logits: Tensor, inside: Tensor, top_k: int) -> Tensor:
    """logits [rows * tokens, experts] (or in that many dimensions more), inside [rows, tokens] -> sum over the rows of
    the loss, fp32 []."""
    experts = logits.shape[-1]
    chances = logits.float().view(*inside.shape, experts).softmax(-1)
    weight = inside.unsqueeze(-1).float()
    tokens = weight.sum(1).clamp(min=1)  # [rows, 1]; a row may be all padding
    chosen = torch.zeros_like(chances).scatter_(-1, chances.topk(top_k, -1).indices, 1.0)
    sent, mean = (chosen * weight).sum(1) / tokens, (chances * weight).sum(1) / tokens  # [rows, experts]
    return experts * (sent * mean).sum()


def balance_routers(lm: PreTrainedModel, config: LossConfig, *, rows: int, ranks: int) -> RouterBalance | None:
    """Add the loss to a model's routers; None where its weight is 0, or the model has none.

    Raises UserError where a weight is given for a model without routers that transformers names.
    """
    recorders = getattr(lm.model, "_can_record_outputs", None) or {}
    recorder = recorders.get("router_logits")
    coefficient = getattr(lm.config, "router_aux_loss_coef", None)
    routers = [module for module in lm.model.modules() if recorder and isinstance(module, recorder.target_class)]
    if recorder is None or not routers or coefficient is None:
        if config.router:
            raise UserError(
                f"loss.router={config.router}: {lm.config.model_type} has no experts that a router of this kind "
                "chooses; leave it out"
            )
        return None
    weight = float(coefficient) if config.router is None else config.router
    if not weight:
        return None
    return RouterBalance(routers, recorder.index, lm.config.num_experts_per_tok, weight=weight, rows=rows, ranks=ranks)
