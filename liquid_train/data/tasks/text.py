"""text: [bos] text [eos], loss on every token. The one task whose documents may be cut to fill a sequence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from liquid_train.data.sequence_pieces import Part, Piece, encode_text, parts_ids
from liquid_train.data.settings import DataConfig, SourceConfig
from liquid_train.data.tasks import TASKS, Generation, Task
from liquid_train.data.tasks._captions import draw_caption

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
        return [{}] if "text" in sample else []

    def draw(self, fields: dict[str, Any], data: DataConfig, generator: np.random.Generator) -> None:
        fields["text"] = draw_caption(fields, generator)

    def pieces(self, fields: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[Piece]:
        return [(self.prompt_ids(fields, tokenizer), True), (encode_text(tokenizer, fields["text"]), True)]

    def continued(self, prompt: Sequence[Part], tokenizer: PreTrainedTokenizerBase) -> list[int]:
        return self.prompt_ids({}, tokenizer) + parts_ids(prompt, tokenizer)
