"""text: [bos] text [eos], loss on every token. The one task whose documents may be cut to fill a sequence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from liquid_train.data.sequence_pieces import BadSample, Part, Piece, encode_text, parts_ids
from liquid_train.data.settings import DataConfig, SourceConfig
from liquid_train.data.tasks import TASKS, Generation, Task
from liquid_train.data.tasks._captions import draw_caption
from liquid_train.vocabulary import IMAGE_TOKENS, text_size

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from liquid_train.data.shard_format import Sample


@TASKS.register("text")
class Text(Task):
    name = "text"
    splittable = True
    generation = Generation(given="prompt", makes="text")

    def documents(
        self, sample: Sample, source: SourceConfig, generator: Callable[[], np.random.Generator]
    ) -> list[dict[str, Any]]:
        return [{}] if "text" in sample or "ids" in sample else []

    def draw(self, fields: dict[str, Any], data: DataConfig, generator: np.random.Generator) -> None:
        if "ids" not in fields:
            fields["text"] = draw_caption(fields, generator)

    def pieces(self, fields: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[Piece]:
        words = ids_of_text(fields["ids"], tokenizer) if "ids" in fields else encode_text(tokenizer, fields["text"])
        return [(self.prompt_ids(fields, tokenizer), True), (words, True)]

    def continued(self, prompt: Sequence[Part], tokenizer: PreTrainedTokenizerBase) -> list[int]:
        return self.prompt_ids({}, tokenizer) + parts_ids(prompt, tokenizer)


def ids_of_text(ids: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Ids [n] of a sample that was tokenized elsewhere, int64 [n]. Raises BadSample where they are not text's."""
    if int(ids.max()) >= text_size(tokenizer):
        raise BadSample("an id beyond the tokenizer's")
    added = tokenizer.get_added_vocab()
    if np.isin(ids, [added[token] for token in IMAGE_TOKENS if token in added]).any():
        raise BadSample("an image token among the ids of a text")
    return ids.astype(np.int64)
