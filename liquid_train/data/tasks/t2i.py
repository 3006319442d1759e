"""t2i: [bos] caption + prompt suffix <boi> codes <eoi> [eos], loss on codes, eoi, eos.

In a share of the documents (data.unconditional) <unconditional> stands in place of caption and suffix, for guidance.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from liquid_train.data.sequence_pieces import Piece, bos_ids, encode_text, image_ids, size_sentence
from liquid_train.data.settings import DataConfig
from liquid_train.data.tasks import TASKS, Generation
from liquid_train.data.tasks._captions import CaptionedImage
from liquid_train.vocabulary import BOI, EOI, UNCONDITIONAL, special_id

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULT_PROMPT = " Generate an image based on this description."


@TASKS.register("t2i")
class TextToImage(CaptionedImage):
    """Fields next to the sample's: prompt_suffix (None: the published one), unconditional."""

    name = "t2i"
    generation = Generation(given="prompt", makes="image")

    def draw(self, fields: dict[str, Any], data: DataConfig, generator: np.random.Generator) -> None:
        super().draw(fields, data, generator)
        fields["prompt_suffix"] = data.prompts[int(generator.integers(len(data.prompts)))]
        fields["unconditional"] = bool(generator.random() < data.unconditional)

    def prompt_ids(self, fields: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[int]:
        size, suffix = size_sentence(fields), fields.get("prompt_suffix")
        if fields.get("unconditional"):
            description = [*encode_text(tokenizer, size), special_id(tokenizer, UNCONDITIONAL)]
        else:
            text = fields["text"] + size + (DEFAULT_PROMPT if suffix is None else suffix)
            description = encode_text(tokenizer, text)
        return [*bos_ids(tokenizer), *description, special_id(tokenizer, BOI)]

    def pieces(self, fields: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[Piece]:
        return [
            (self.prompt_ids(fields, tokenizer), False),
            (image_ids(fields["codes"], tokenizer), True),
            ([special_id(tokenizer, EOI)], True),
        ]
