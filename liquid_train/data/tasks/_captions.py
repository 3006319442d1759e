"""What the tasks of captioned images share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from liquid_train.data.sequence_pieces import encode_text
from liquid_train.data.settings import DataConfig, SourceConfig
from liquid_train.data.tasks import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from liquid_train.data.shard_format import Sample


def draw_caption(fields: dict[str, Any], generator: np.random.Generator) -> str:
    """One of `captions` [{text, weight}] by weight, else `text`."""
    captions = fields.get("captions")
    if not captions:
        text: str = fields["text"]
        return text
    weights = np.array([c.get("weight", 1.0) for c in captions], dtype=float)
    caption: str = captions[int(generator.choice(len(captions), p=weights / weights.sum()))]["text"]
    return caption


class CaptionedImage(Task):
    """An image with one of its captions. Too long for a sequence, the caption is shortened: an image is never cut."""

    def documents(
        self, sample: Sample, source: SourceConfig, generator: Callable[[], np.random.Generator]
    ) -> list[dict[str, Any]]:
        return [{}] if "text" in sample and "codes" in sample else []

    def draw(self, fields: dict[str, Any], data: DataConfig, generator: np.random.Generator) -> None:
        fields["text"] = draw_caption(fields, generator)

    def shorten(self, fields: dict[str, Any], excess: int, tokenizer: PreTrainedTokenizerBase) -> str | None:
        words = encode_text(tokenizer, fields["text"])
        # two more than the excess: what is left may be encoded in other tokens than before
        fields["text"] = tokenizer.decode(words[: max(0, len(words) - excess - 2)])
        return "caption shortened"
