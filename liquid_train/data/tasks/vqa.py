"""vqa: [bos] <boi> codes <eoi> newline question, space, answer [eos], loss on answers, eos.

Questions come in an order drawn for each image and epoch, `questions_per_document` of them chained after one image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from liquid_train.data.sequence_pieces import Piece, bos_ids, encode_text, whole_image
from liquid_train.data.settings import DataConfig, SourceConfig
from liquid_train.data.tasks import TASKS, Generation, Task
from liquid_train.text_normalizer import normalize_text

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
        asked = [(q["question"], q["answers"]) for q in sample["info"].get("questions") or ()]
        if "codes" not in sample or not asked:
            return []
        draw, k = generator(), source.questions_per_document
        turns = [
            (question, answers[int(draw.integers(len(answers)))])
            for question, answers in (asked[i] for i in draw.permutation(len(asked)))
        ]
        return [{"turns": turns[i : i + k]} for i in range(0, len(turns), k)]

    def expected(self, rows: np.ndarray, source: SourceConfig) -> np.ndarray:
        return -(-rows["questions"].astype(np.int64) // source.questions_per_document)

    def shortest(self, rows: int, columns: int, data: DataConfig, tokenizer: PreTrainedTokenizerBase) -> int:
        return len(self.sequence({"codes": np.zeros((rows, columns)), "turns": [("", "")]}, tokenizer)[0])

    def prompt_ids(self, fields: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Up to <eoi>; a question follows (question_ids)."""
        return [*bos_ids(tokenizer), *whole_image(fields["codes"], tokenizer)]

    def pieces(self, fields: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[Piece]:
        pieces: list[Piece] = [(self.prompt_ids(fields, tokenizer), False)]
        for question, answer in fields.get("turns") or [(fields["question"], fields["answer"])]:
            pieces.append((question_ids(question, tokenizer), False))
            pieces.append((encode_text(tokenizer, " " + normalize_text(answer)), True))
        return pieces


def question_ids(question: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of one question after an image or after an earlier answer."""
    return encode_text(tokenizer, "\n" + normalize_text(question))
