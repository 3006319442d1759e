"""Head and cross-entropy, one chunk of target positions at a time, with loss, token accuracy and counts per task.

Logits of at most `chunk` positions exist at a time: as in Liger (arXiv 2410.10989, section 3.2), the forward computes
each chunk's loss and its gradients together, and the backward only scales them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from liquid_train.data.batch import MicroBatch
from liquid_train.model.backbone import rows_of
from liquid_train.model.families import family_of
from liquid_train.model.router_balance import RouterBalance
from liquid_train.model.settings import LossConfig
from liquid_train.vocabulary import Vocabulary


@dataclass(frozen=True)
class HeadOptions:
    """How the head's logits become a loss."""

    vocabulary: int  # rows from here on are left out
    chunk: int = 1024  # target positions
    softcap: float | None = None  # Gemma-2's final soft-capping
    scale: float = 1.0  # the logits are multiplied by it (Cohere, Granite)
    z_loss: float = 0.0  # weight of log(Z)^2
    group: dist.ProcessGroup | None = None  # over which the head is split by vocabulary
    first_row: int = 0  # of the rows on this rank


class ChunkedCrossEntropy(torch.autograd.Function):
    """hidden [T, d], weight [V, d], targets [T], weights [T], bias [V] or None -> (weighted sum of losses, losses [T],
    correct [T]).

    With a group, weight and bias are this rank's V rows of longer tables; all other arguments and results are the same
    on all ranks of the group.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        weights: Tensor,
        options: HeadOptions,
        train: bool,
        bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows = weight[: max(0, options.vocabulary - options.first_row)]
        grad_bias = None if bias is None else torch.zeros(bias.shape, dtype=torch.float32, device=bias.device)
        losses, correct = torch.zeros_like(weights), torch.zeros_like(targets, dtype=torch.bool)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros(weight.shape if train else (0, 0), dtype=torch.float32, device=rows.device)
        grad_rows = grad_weight[: len(rows)]  # the gradient of the rows beyond the vocabulary stays 0
        total = torch.zeros((), device=hidden.device)
        for start in range(0, len(hidden), options.chunk):
            part = slice(start, start + options.chunk)
            h, w = hidden[part], weights[part].unsqueeze(1)
            logits = (h @ rows.t()).float()  # [chunk, rows here]
            if bias is not None:
                logits += bias[: len(rows)]
            if options.scale != 1.0:
                logits *= options.scale
            if options.softcap is not None:
                tanh = torch.tanh(logits / options.softcap)
                logits = options.softcap * tanh
            chunk = reduce_logits(logits, targets[part].unsqueeze(1) - options.first_row, options.group)
            loss = chunk.log_z - chunk.picked
            losses[part] = loss.squeeze(1)
            correct[part] = (chunk.picked == chunk.best).squeeze(1)
            total += (w * (loss + options.z_loss * chunk.log_z.square())).sum()
            if not train:
                continue
            # softmax, in place: from here on this is the gradient of the logits
            grad = logits.sub_(chunk.log_z).exp_()
            if options.z_loss:
                grad *= 1 + 2 * options.z_loss * chunk.log_z
            if grad.shape[1]:  # no rows where this rank's part of the table lies beyond the vocabulary
                grad.scatter_add_(1, chunk.column, -chunk.here.to(grad.dtype))
            grad *= w
            if options.softcap is not None:
                grad *= 1 - tanh.square()
            if options.scale != 1.0:
                grad *= options.scale
            if grad_bias is not None:
                grad_bias[: len(rows)] += grad.sum(0)
            grad = grad.to(h.dtype)
            grad_hidden[part] = grad @ rows
            if h.dtype == torch.float32:
                grad_rows.addmm_(grad.t(), h)
            else:
                grad_rows += grad.t() @ h
            del logits, grad  # before those of the next chunk are made
        if options.group is not None and train:
            dist.all_reduce(grad_hidden, group=options.group)
        ctx.gradients, ctx.dtype = (grad_hidden, grad_weight, grad_bias), weight.dtype
        ctx.mark_non_differentiable(losses, correct)
        return total, losses, correct

    @staticmethod
    def backward(
        ctx: Any, grad_total: Tensor, *_: Tensor
    ) -> tuple[Tensor, Tensor, None, None, None, None, Tensor | None]:
        grad_hidden, grad_weight, grad_bias = ctx.gradients
        del ctx.gradients  # scaled in place, so only once: a copy would be as large as the head
        if grad_bias is not None:
            grad_bias = grad_bias.mul_(grad_total).to(ctx.dtype)
        weight_gradient = grad_weight.mul_(grad_total).to(ctx.dtype)
        return grad_hidden.mul_(grad_total), weight_gradient, None, None, None, None, grad_bias


@dataclass(frozen=True)
class ChunkLogits:
    """A chunk's logits, reduced over the vocabulary and all ranks; each [chunk, 1]."""

    log_z: Tensor  # log of the sum of exponentials
    best: Tensor  # the largest logit
    picked: Tensor  # the target's logit
    column: Tensor  # the target's column in this rank's part
    here: Tensor  # whether the target is in this rank's part


def reduce_logits(logits: Tensor, column: Tensor, group: dist.ProcessGroup | None) -> ChunkLogits:
    """logits [chunk, rows here]; column [chunk, 1]: the target's, out of range where another rank has it. A collective
    of `group`."""
    rows = logits.shape[1]
    here = (column >= 0) & (column < rows)
    column = column.clamp(0, max(0, rows - 1))
    if group is None:
        return ChunkLogits(
            logits.logsumexp(1, keepdim=True), logits.amax(1, keepdim=True), logits.gather(1, column), column, here
        )
    best = logits.amax(1, keepdim=True) if rows else torch.full_like(column, -math.inf, dtype=logits.dtype)
    dist.all_reduce(best, op=dist.ReduceOp.MAX, group=group)
    exponentials = torch.exp(logits - best).sum(1, keepdim=True)
    picked = torch.where(here, logits.gather(1, column), 0.0) if rows else torch.zeros_like(best)
    sums = torch.cat([exponentials, picked], 1)
    dist.all_reduce(sums, group=group)
    return ChunkLogits(best + sums[:, :1].log(), best, sums[:, 1:], column, here)


@dataclass(frozen=True)
class LossOutput:
    """Of the T targets of a micro-batch; only `total` has a gradient."""

    total: Tensor  # weighted sum of the losses
    per_task: Tensor  # fp64 [4, tasks]: sums of loss, of correct, counts, sums of weighted loss without z-loss
    chosen: Tensor  # [T]: each target's position in the flattened batch
    losses: Tensor  # [T], nats, unweighted
    correct: Tensor  # [T]: whether the target had the largest logit


class LossModule(nn.Module):
    """The root module that FSDP wraps: backbone, head and loss in one forward, so that the head's weight is gathered
    when it is read."""

    def __init__(self, lm: PreTrainedModel, options: HeadOptions) -> None:
        super().__init__()
        self.lm = lm
        self.options = options
        self.balance: RouterBalance | None = None  # while training a mixture of experts
        self._loss: Callable[..., tuple[Tensor, Tensor, Tensor]] = self._loss_of_targets

    @classmethod
    def of(cls, lm: PreTrainedModel, vocabulary: Vocabulary, config: LossConfig) -> LossModule:
        """The loss of a backbone by `config`."""
        return cls(lm, head_options(lm, vocabulary.image_end, config))

    def separate_head(self) -> nn.Module | None:
        """The head, for FSDP to shard as a group of its own, whose gradient is then reduced before the first block's
        backward begins; None where it shares its weight with the embedding, and the two must be one group.

        From here on its forward is the loss of targets: FSDP gathers a group's weight for that group's forward alone.
        """
        head: Any = self.lm.get_output_embeddings()
        embedding: Any = self.lm.get_input_embeddings()
        if head.weight is embedding.weight:
            return None
        head.forward = self._loss_of_targets
        self._loss = head.__call__  # not the module itself, which would become a second submodule here
        return cast(nn.Module, head)

    def forward(self, batch: MicroBatch) -> LossOutput:
        if self.balance:
            inside = batch.inside
            self.balance.begin(torch.ones_like(batch.input_ids, dtype=torch.bool) if inside is None else inside)
        hidden = self.lm.model(
            input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False, document_plan=batch.plan
        ).last_hidden_state  # [n, seq_len, d]
        chosen = batch.chosen
        hidden = hidden.reshape(-1, hidden.shape[-1]).index_select(0, chosen)
        targets, weights = batch.targets.view(-1)[chosen], batch.weights.view(-1)[chosen]
        total, losses, correct = self._loss(hidden, targets, weights)
        tasks = batch.tasks.view(-1)[chosen].long()
        sums = torch.zeros(4, len(batch.task_names), device=hidden.device, dtype=torch.float64)
        for row, values in enumerate((losses, correct, torch.ones_like(losses), weights * losses)):
            sums[row].index_add_(0, tasks, values.double())
        return LossOutput(total, sums, chosen, losses, correct)

    def _loss_of_targets(self, hidden: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """hidden [T, d], targets [T], weights [T] -> weighted sum of losses, losses [T], correct [T]."""
        weight, bias, options = self._head()
        found: tuple[Tensor, Tensor, Tensor] = ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
            hidden, weight, targets, weights, options, torch.is_grad_enabled(), bias
        )
        return found

    def _head(self) -> tuple[Tensor, Tensor | None, HeadOptions]:
        """This rank's rows of the head and its bias: all of them, or with tensor parallelism a part."""
        head: Any = self.lm.get_output_embeddings()
        weight, bias = head.weight, getattr(head, "bias", None)
        if not isinstance(weight, DTensor):
            return weight, bias, self.options
        assert bias is None  # tensor_parallel.py refuses it
        options = replace(self.options, first_row=rows_of(weight)[1], group=weight.device_mesh.get_group())
        return weight.to_local(grad_placements=weight.placements), None, options


def head_options(lm: PreTrainedModel, vocabulary: int, config: LossConfig) -> HeadOptions:
    """A backbone's head by `config`, with the soft-capping and scale of its logits. vocabulary: rows that count."""
    family = family_of(lm.config.model_type)
    softcap, scale = family.logit_softcap(lm.config), family.logit_scale(lm.config)
    return HeadOptions(vocabulary, config.chunk, softcap, scale, config.z_loss)
