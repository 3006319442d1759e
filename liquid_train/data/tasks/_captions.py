"""What the tasks of captioned images share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from liquid_train.data.sequence_pieces import BadSample, encode_text
from liquid_train.data.settings import DataConfig, SourceConfig
from liquid_train.data.tasks import Task
from liquid_train.text_normalizer import normalize_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from liquid_train.data.shard_format import Sample


def draw_caption(fields: dict[str, Any], generator: np.random.Generator) -> str:
    """One of `captions` [{text, weight}] by weight, else `text`. Raises BadSample where that is blank."""
    captions = fields.get("captions")
    if not captions:
        text: str = fields["text"]
        if not normalize_text(text).strip():
            raise BadSample("text is blank")
        return text
    weights = np.array([c.get("weight", 1.0) for c in captions], dtype=float)
    caption: str = captions[int(generator.choice(len(captions), p=weights / weights.sum()))]["text"]
    return caption


class CaptionedImage(Task):
    """An image with one of its captions. Too long for a sequence, the caption is shortened: an image is never cut."""

    def documents(
        self, sample: Sample, source: SourceConfig, generator: Callable[[], np.random.Generator]
    ) -> list[dict[str, Any]]:
        return [{}] if "codes" in sample and ("text" in sample or sample["info"].get("captions")) else []

    def draw(self, fields: dict[str, Any], data: DataConfig, generator: np.random.Generator) -> None:
        fields["text"] = draw_caption(fields, generator)

    def shortest(self, rows: int, columns: int, data: DataConfig, tokenizer: PreTrainedTokenizerBase) -> int:
        """With a caption of which nothing is left, and the shortest prompt."""
        fields = {"text": "", "codes": np.zeros((rows, columns))}
        return min(len(self.sequence({**fields, "prompt_suffix": p}, tokenizer)[0]) for p in data.prompts)

    def shorten(self, fields: dict[str, Any], excess: int, tokenizer: PreTrainedTokenizerBase) -> str | None:
        words = encode_text(tokenizer, fields["text"])
        # two more than the excess: what is left may be encoded in other tokens than before
        fields["text"] = tokenizer.decode(words[: max(0, len(words) - excess - 2)])
        return "caption shortened"
