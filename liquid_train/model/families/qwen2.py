"""Qwen2 and Qwen2.5 (Qwen Team 2024, arXiv 2412.15115). The published vocabulary has more rows than the tokenizer has
entries; image ids start at the tokenizer's length (vocabulary.py)."""

from __future__ import annotations

from liquid_train.model.families import FAMILIES, Family


@FAMILIES.register("qwen2")
class Qwen2(Family):
    special_tokens = (("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),)
    fused_decode = True
