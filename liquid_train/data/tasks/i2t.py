"""i2t: [bos] <boi> codes <eoi> The caption of this image is:caption [eos], loss on caption, eos."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from liquid_train.data.sequence_pieces import Piece, bos_ids, encode_text, whole_image
from liquid_train.data.tasks import TASKS, Generation
from liquid_train.data.tasks._captions import CaptionedImage

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CAPTION_LEAD = "The caption of this image is:"


@TASKS.register("i2t")
class ImageToText(CaptionedImage):
    name = "i2t"
    generation = Generation(given="image", makes="text", question="optional")

    def prompt_ids(self, fields: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[int]:
        image = whole_image(fields["codes"], tokenizer)
        return [*bos_ids(tokenizer), *image, *encode_text(tokenizer, CAPTION_LEAD)]

    def pieces(self, fields: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[Piece]:
        return [(self.prompt_ids(fields, tokenizer), False), (encode_text(tokenizer, fields["text"]), True)]
