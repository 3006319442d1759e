"""Head and cross-entropy in one pass over chunks of target positions, with loss, token accuracy and counts per task.

Logits never exist for more than `chunk` positions: the forward computes each chunk's loss and its gradients at once, as Liger
(arXiv 2410.10989, section 3.2) does, so the backward only scales them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from liquid_train.config import TASKS, LossConfig
from liquid_train.data.loader import MicroBatch
from liquid_train.data.sequences import IGNORED
from liquid_train.vocabulary import Vocabulary


@dataclass(frozen=True)
class HeadOptions:
    """vocabulary: rows from here on never win. softcap: Gemma-2's final soft-capping. z_loss: weight of log(Z)^2."""

    vocabulary: int
    chunk: int = 1024
    softcap: float | None = None
    z_loss: float = 0.0


class ChunkedCrossEntropy(torch.autograd.Function):
    """hidden [T, d], weight [V, d], targets [T], weights [T] -> (weighted sum of losses, losses [T], correct [T])."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor, options: HeadOptions, train: bool) -> tuple[Tensor, Tensor, Tensor]:
        rows = weight[: options.vocabulary]
        losses, correct = torch.zeros_like(weights), torch.zeros_like(targets, dtype=torch.bool)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros(rows.shape if train else (0,), dtype=torch.float32, device=rows.device)
        total = torch.zeros((), device=hidden.device)
        for start in range(0, len(hidden), options.chunk):
            part = slice(start, start + options.chunk)
            h, t, w = hidden[part], targets[part], weights[part].unsqueeze(1)
            logits = (h @ rows.t()).float()  # [chunk, vocabulary]
            if options.softcap is not None:
                tanh = torch.tanh(logits / options.softcap)
                logits = options.softcap * tanh
            log_z = logits.logsumexp(1, keepdim=True)
            picked = logits.gather(1, t.unsqueeze(1))
            loss = log_z - picked
            losses[part] = loss.squeeze(1)
            correct[part] = logits.argmax(1) == t
            total += (w * (loss + options.z_loss * log_z.square())).sum()
            if not train:
                continue
            grad = torch.exp(logits - log_z)  # softmax; from here on the gradient with respect to the logits
            if options.z_loss:
                grad *= 1 + 2 * options.z_loss * log_z
            grad.scatter_add_(1, t.unsqueeze(1), torch.full_like(picked, -1.0))
            grad *= w
            if options.softcap is not None:
                grad *= 1 - tanh.square()
            grad = grad.to(h.dtype)
            grad_hidden[part] = grad @ rows
            grad_weight += (grad.t() @ h).float()
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.rows = len(weight)
        ctx.dtype = weight.dtype
        ctx.mark_non_differentiable(losses, correct)
        return total, losses, correct

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:  # type: ignore[override]
        grad_hidden, grad_weight = ctx.saved_tensors
        grad_weight = F.pad(grad_weight * grad_total, (0, 0, 0, ctx.rows - len(grad_weight)))
        return grad_hidden * grad_total, grad_weight.to(ctx.dtype), None, None, None, None


@dataclass(frozen=True)
class LossOutput:
    """total: weighted sum over targets (with gradient). per_task [4, tasks]: sums of loss, of correct, counts,
    and sums of weighted loss without z-loss (no gradient)."""

    total: Tensor
    per_task: Tensor


class LossModule(nn.Module):
    """The root module that FSDP wraps: backbone, head and loss in one forward, so the head's weight is gathered where it is read."""

    def __init__(self, lm: PreTrainedModel, options: HeadOptions) -> None:
        super().__init__()
        self.lm = lm
        self.options = options

    @classmethod
    def of(cls, lm: PreTrainedModel, vocabulary: Vocabulary, config: LossConfig) -> LossModule:
        """The loss of a backbone as `config` has it, with the backbone's own soft-capping (Gemma-2)."""
        softcap = getattr(lm.config, "final_logit_softcapping", None)
        return cls(lm, HeadOptions(vocabulary.image_end, config.chunk, softcap, config.z_loss))

    def forward(self, batch: MicroBatch) -> LossOutput:
        hidden = self.lm.model(
            input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False, document_plan=batch.plan
        ).last_hidden_state  # [n, seq_len, d]
        chosen = (batch.targets != IGNORED).view(-1).nonzero().squeeze(1)
        hidden = hidden.reshape(-1, hidden.shape[-1]).index_select(0, chosen)
        targets, weights = batch.targets.view(-1)[chosen], batch.weights.view(-1)[chosen]
        total, losses, correct = ChunkedCrossEntropy.apply(
            hidden, self.lm.get_output_embeddings().weight, targets, weights, self.options, torch.is_grad_enabled()
        )
        tasks = batch.tasks.view(-1)[chosen].long()
        sums = torch.zeros(4, len(TASKS), device=hidden.device, dtype=torch.float64)
        for row, values in enumerate((losses, correct, torch.ones_like(losses), weights * losses)):
            sums[row].index_add_(0, tasks, values.double())
        return LossOutput(total, sums)
