"""A warning before training when a mixture cannot fill its sequences: images are never cut, so that too few texts or
too short a seq_len leave padding."""

from __future__ import annotations

from liquid_train.data.loader import source_readers
from liquid_train.data.mixture import Document, Mixture
from liquid_train.data.placement import longest_first
from liquid_train.data.settings import DataConfig
from liquid_train.data.shards import ShardSet
from liquid_train.vocabulary import Vocabulary

SAMPLE_DOCUMENTS = 256  # of one stream
TOO_MUCH = 0.02  # share of padding that is worth a warning
LARGER = (2, 4, 8, 16)  # multiples of seq_len to propose from
ENOUGH = 16  # sequences to judge by


def expected_padding(documents: list[Document], seq_len: int) -> float:
    """Share of padding when these documents are packed over and over.

    The number of sequences needed is that which all tokens fill, or that which the images need when packed alone,
    whichever is larger.
    """
    tokens = sum(len(d) for d in documents if d.splittable or len(d) <= seq_len)
    whole = [d for d in documents if not d.splittable and len(d) <= seq_len]
    if not whole:
        return 0.0
    times = -(-ENOUGH * seq_len // sum(len(d) for d in whole))
    placement, _ = longest_first(whole * times, len(whole) * times, seq_len)
    *full, last = sorted((sum(len(d) for d in p) for p in placement.placed if p), reverse=True)
    needed = len(full) + last * len(full) / sum(full)  # the last one counts by its share of the others' filling
    return 1 - tokens / (max(tokens / seq_len, needed / times) * seq_len)


def padding_warning(data: DataConfig, seed: int, sets: dict[str, ShardSet], vocabulary: Vocabulary) -> str | None:
    """One line when the mixture leaves more than 2% of the tokens empty, with a seq_len that would not; None otherwise.

    Reads the first 256 documents of stream 0: one chunk or two of each source.
    """
    readers = source_readers(data, seed, sets, vocabulary)
    if all(r.task.splittable for r in readers.values()):
        return None
    mixture = Mixture(0, readers)
    documents: list[Document] = []
    while len(documents) < SAMPLE_DOCUMENTS and (document := mixture.next()) is not None:
        documents.append(document)
    seq_len = data.seq_len
    padding = expected_padding(documents, seq_len)
    if padding <= TOO_MUCH:
        return None
    better = next((seq_len * k for k in LARGER if expected_padding(documents, seq_len * k) <= TOO_MUCH / 2), None)
    longest = max(len(d) for d in documents if not d.splittable)
    remedy = f"data.seq_len={better} would fill them" if better else "a larger weight for a text source would fill them"
    return (
        f"data.seq_len={seq_len}: about {padding:.0%} of every batch will be padding: images of up to {longest} "
        "tokens are never cut, "
        f"and this mixture has too little text for the rest; {remedy}"
    )
