"""Learning rates of single rows of the embedding and the head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from liquid_train.model.backbone import rows_of
from liquid_train.optim.settings import OptimizerConfig
from liquid_train.vocabulary import Vocabulary


def token_tables(lm: PreTrainedModel) -> list[Tensor]:
    """The embedding, and the head if it is not tied: one row a token."""
    tables: list[Any] = [lm.get_input_embeddings().weight, lm.get_output_embeddings().weight]
    return tables[:1] if tables[0] is tables[1] else tables


class RowRates:
    """Trains rows of the embedding and the head at rates of their own, or at first alone.

    A step must be proportional to the learning rate, weight decay included, as AdamW's is. Then a row's own rate scales
    how far it has moved in a step. In the first optimizer.new_rows_steps steps only rows that a published checkpoint
    lacks are trained: image rows, <boi>, <eoi>, <unconditional>.
    """

    def __init__(self, lm: PreTrainedModel, vocabulary: Vocabulary, config: OptimizerConfig) -> None:
        self.config, self.tables = config, token_tables(lm)
        self.others = [p for p in lm.parameters() if not any(p is table for table in self.tables)]
        self.all_rows = torch.ones(vocabulary.rows)  # learning rate of every row, relative to optimizer.lr
        self.all_rows[vocabulary.image_start : vocabulary.image_end] = config.image_embedding_lr_scale
        self.new_rows = torch.zeros(vocabulary.rows)
        for row in (
            slice(vocabulary.image_start, vocabulary.image_end),
            vocabulary.boi,
            vocabulary.eoi,
            vocabulary.unconditional,
        ):
            self.new_rows[row] = self.all_rows[row]

    def mask_gradients(self, step: int) -> None:
        """In the first stage: zero all gradients but those of the new rows, before clipping."""
        if step >= self.config.new_rows_steps:
            return
        for parameter in self.others:
            if parameter.grad is not None:
                parameter.grad.zero_()
        for table in self.tables:
            if table.grad is not None:
                gradient, first = rows_of(table.grad)
                gradient[(self.new_rows[first : first + len(gradient)] == 0).to(gradient.device)] = 0.0

    def step(self, optimizer: torch.optim.Optimizer, step: int, lr: float) -> None:
        """One optimizer step at learning rate lr."""
        first_stage = step < self.config.new_rows_steps
        for group, rate in zip(
            optimizer.param_groups, (lr, *(0.0 if first_stage else lr for _ in range(2))), strict=True
        ):
            group["lr"] = rate
        scales = self.new_rows if first_stage else self.all_rows
        at_one_rate = not first_stage and self.config.image_embedding_lr_scale == 1.0
        moved = [] if at_one_rate else [_Moved(table, scales) for table in self.tables]
        optimizer.step()
        for table in moved:
            table.scale()


class _Moved:
    """The rows of this rank's part of a table whose scale is not 1, as they were before the step."""

    def __init__(self, table: Tensor, scales: Tensor) -> None:
        self.local, first = rows_of(table)
        scale = scales[first : first + len(self.local)].to(self.local.device)
        self.which = (scale != 1).nonzero().squeeze(1)
        self.scale_of = scale[self.which].unsqueeze(1)
        self.before = self.local.detach()[self.which].clone()

    @torch.no_grad()
    def scale(self) -> None:
        if not len(self.which):
            return
        self.local[self.which] = self.before + self.scale_of * (self.local[self.which] - self.before)
