"""SmolLM3 (Hugging Face 2025): Llama's block, without positions in every fourth layer.

The tokenizer is Llama 3's, with its first reserved entries given to <think>, </think> and tools; those below are free.
"""

from __future__ import annotations

from liquid_train.model.families import FAMILIES, Family


@FAMILIES.register("smollm3")
class SmolLM3(Family):
    special_tokens = (
        ("<|reserved_special_token_100|>", "<|reserved_special_token_101|>", "<|reserved_special_token_102|>"),
    )
