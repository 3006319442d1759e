"""vqa: [bos] <boi> codes <eoi> newline question, space, answer [eos], loss on answers, eos.

Questions come in an order drawn for each image and epoch, `questions_per_document` of them chained after one image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from liquid_train.data.sequence_pieces import Piece, bos_ids, encode_text, whole_image
from liquid_train.data.settings import SourceConfig
from liquid_train.data.tasks import TASKS, Generation, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from liquid_train.data.shard_format import Sample


@TASKS.register("vqa")
class VQA(Task):
    """Fields next to the sample's: turns [(question, answer)], or else question and answer."""

    name = "vqa"
    asks_questions = True
    generation = Generation(given="image", makes="text", question="required")

    def documents(
        self, sample: Sample, source: SourceConfig, generator: Callable[[], np.random.Generator]
    ) -> list[dict[str, Any]]:
        asked = [(q["question"], q["answers"]) for q in sample["info"].get("questions", ())]
        if "codes" not in sample or not asked:
            return []
        draw, k = generator(), source.questions_per_document
        turns = [
            (question, answers[int(draw.integers(len(answers)))])
            for question, answers in (asked[i] for i in draw.permutation(len(asked)))
        ]
        return [{"turns": turns[i : i + k]} for i in range(0, len(turns), k)]

    def prompt_ids(self, fields: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Up to <eoi>; a question follows (question_ids)."""
        return [*bos_ids(tokenizer), *whole_image(fields["codes"], tokenizer)]

    def pieces(self, fields: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[Piece]:
        pieces: list[Piece] = [(self.prompt_ids(fields, tokenizer), False)]
        for question, answer in fields.get("turns") or [(fields["question"], fields["answer"])]:
            pieces.append((question_ids(question, tokenizer), False))
            pieces.append((encode_text(tokenizer, " " + answer), True))
        return pieces


def question_ids(question: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of one question after an image or after an earlier answer."""
    return encode_text(tokenizer, "\n" + question)
