"""GPT-OSS (OpenAI 2025, arXiv 2508.10925): experts in every block, a sliding window in every second one, sinks."""

from __future__ import annotations

from liquid_train.model.families import FAMILIES, Family


@FAMILIES.register("gpt_oss")
class GptOss(Family):
    special_tokens = (("<|reserved_200000|>", "<|reserved_200001|>", "<|reserved_200004|>"),)
    attention_sinks = True
