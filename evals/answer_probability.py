"""How probable a model finds given answers to questions about pictures: the whole answer with the end behind it left open."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from liquid_train.data.sequences import encode_text, prompt_ids, question_ids
from liquid_train.generate.decoder import Decoder, left_padded
from liquid_train.vocabulary import Vocabulary


@torch.inference_mode()
def answer_probabilities(
    model: PreTrainedModel,
    vocabulary: Vocabulary,
    items: Sequence[tuple[np.ndarray, str]],
    answers: Sequence[str],
    *,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """(codes [rows, columns], question) pairs -> fp64 [items, answers]: product of the probabilities of each answer's tokens.

    The softmax goes over the text ids alone, as answers are decoded. progress: called with (items done, all).
    """
    tokenizer = vocabulary.tokenizer
    targets = [encode_text(tokenizer, " " + a) for a in answers]
    heads = [prompt_ids({"codes": codes}, "vqa", tokenizer) + question_ids(question, tokenizer) for codes, question in items]
    order = sorted(range(len(items)), key=lambda n: -len(heads[n]))  # longest first: too little memory shows at once
    logs = np.zeros((len(items), len(answers)))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        for beginning in dict.fromkeys(tuple(t[:-1]) for t in targets):  # answers of one token share one pass
            chances = continuation_log_probabilities(model, vocabulary, [heads[n] + list(beginning) for n in batch], len(beginning) + 1)
            for a, target in enumerate(targets):
                if tuple(target[:-1]) == beginning:
                    logs[batch, a] = sum(chances[:, place, token] for place, token in enumerate(target))
        if progress is not None:
            progress(min(start + batch_size, len(order)), len(order))
    return np.exp(logs)


def continuation_log_probabilities(model: PreTrainedModel, vocabulary: Vocabulary, rows: list[list[int]], places: int) -> np.ndarray:
    """Log probability of every text id behind the last `places` tokens of each row, fp64 [rows, places, text ids]."""
    longest = max(len(row) for row in rows)
    decoder = Decoder(model, len(rows), longest, longest)
    hidden = decoder.feed(*left_padded(rows, vocabulary.pad, decoder.device))[:, -places:]
    return decoder.logits(hidden, 0, vocabulary.text_size).double().log_softmax(-1).cpu().numpy()
