"""How probable a model finds given answers to questions about images: the whole answer with the end after it left
open."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from liquid_train.data.sequence_pieces import encode_text
from liquid_train.data.sequences import prompt_ids
from liquid_train.data.tasks.vqa import question_ids
from liquid_train.generate.decoder import CachedDecoder, left_padded
from liquid_train.vocabulary import Vocabulary


@torch.inference_mode()
def answer_probabilities(
    model: PreTrainedModel,
    vocabulary: Vocabulary,
    items: Sequence[tuple[np.ndarray, str, Sequence[str]]],
    *,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> list[np.ndarray]:
    """Of each (codes [rows, columns], question, answers): fp64 [answers], the product of the probabilities of each
    answer's tokens.

    The softmax goes over the text ids alone, as answers are decoded. Answers to one question that differ in their last
    token only share a row. progress: called with (rows done, all).
    """
    tokenizer = vocabulary.tokenizer
    logs = [np.zeros(len(answers)) for _, _, answers in items]
    # (item, beginning) -> (number of the answer, its tokens)
    rows: dict[tuple[int, tuple[int, ...]], list[tuple[int, list[int]]]] = {}
    for n, (_, _, answers) in enumerate(items):
        for a, answer in enumerate(answers):
            target = encode_text(tokenizer, " " + answer)
            rows.setdefault((n, tuple(target[:-1])), []).append((a, target))
    heads = [
        prompt_ids({"codes": codes}, "vqa", tokenizer) + question_ids(question, tokenizer)
        for codes, question, _ in items
    ]
    # longest first: too little memory shows at once
    order = sorted(rows, key=lambda row: -len(heads[row[0]]) - len(row[1]))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        places = max(len(beginning) for _, beginning in batch) + 1
        chances = continuation_log_probabilities(
            model, vocabulary, [heads[n] + list(beginning) for n, beginning in batch], places
        )
        for row, (n, beginning) in zip(chances, batch, strict=True):
            own = row[places - len(beginning) - 1 :]
            for a, target in rows[n, beginning]:
                logs[n][a] = own[range(len(target)), target].sum()
        if progress is not None:
            progress(min(start + batch_size, len(order)), len(order))
    return [np.exp(log) for log in logs]


def continuation_log_probabilities(
    model: PreTrainedModel, vocabulary: Vocabulary, rows: list[list[int]], places: int
) -> np.ndarray:
    """Log probability of every text id after the last `places` tokens of each row, fp64 [rows, places, text ids]."""
    longest = max(len(row) for row in rows)
    decoder = CachedDecoder(model, len(rows), longest, longest)
    hidden = decoder.feed(*left_padded(rows, vocabulary.pad, decoder.device))[:, -places:]
    return decoder.logits(hidden, 0, vocabulary.text_size).double().log_softmax(-1).cpu().numpy()
