"""Whether a shard set is easy-VQA, and what kinds its questions are of. Torch-free."""

from __future__ import annotations

from itertools import islice

from data_prep.sources.easy_vqa import COLORS, SHAPES
from data_prep.sources.easy_vqa import answer_type as answer_type
from liquid_train.data.shards import ShardSet

SOURCE = "easy_vqa"
LOOKED_AT = 64  # samples whose questions are looked at


def is_easy_vqa(shards: ShardSet) -> bool:
    """Its index or its samples say so; or, of sets that were made by other means, its questions have easy-VQA's
    answers and no others, colours and shapes both."""
    if shards.name == SOURCE:
        return True
    samples = list(islice(iter(shards), LOOKED_AT))
    if any(sample["info"].get("source") == SOURCE for sample in samples):
        return True
    asked = (q for sample in samples for q in sample["info"].get("questions") or ())
    answers = {answer for q in asked for answer in q["answers"]}
    known = answers <= {*COLORS, *SHAPES, "yes", "no"}
    return known and bool(answers & set(COLORS)) and bool(answers & set(SHAPES))
