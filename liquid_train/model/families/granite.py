"""Granite 3 (IBM 2024): Llama's block, with multipliers of embeddings, attention, residuals and logits.

The tokenizer is StarCoder's, whose markers of GitHub issues are taken.
"""

from __future__ import annotations

from liquid_train.model.families import FAMILIES, Family


@FAMILIES.register("granite")
class Granite(Family):
    special_tokens = (("<issue_start>", "<issue_comment>", "<issue_closed>"),)
