"""OLMo 2 (Team OLMo 2024, arXiv 2501.00656): norms after attention and MLP, and of queries and keys.

The tokenizer is made from cl100k, and its ids have gaps (vocabulary.py).
"""

from __future__ import annotations

from liquid_train.model.families import FAMILIES, Family


@FAMILIES.register("olmo2")
class OLMo2(Family):
    special_tokens = (("<|extra_id_1|>", "<|extra_id_2|>", "<|extra_id_3|>"),)
