"""Llama (Llama Team 2024, arXiv 2407.21783), and what is built as it is, such as SmolLM2."""

from __future__ import annotations

from liquid_train.model.families import FAMILIES, Family


@FAMILIES.register("llama")
class Llama(Family):
    special_tokens = (
        ("<|reserved_special_token_0|>", "<|reserved_special_token_1|>", "<|reserved_special_token_2|>"),  # Llama 3
        ("<repo_name>", "<reponame>", "<file_sep>"),  # SmolLM2
    )
    fused_decode = True
