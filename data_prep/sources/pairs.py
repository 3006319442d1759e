"""The `pairs` source: JSON lines with the path of an image and its caption."""

from __future__ import annotations

from typing import Any

from data_prep.source import ReadImage, SourceRow, first_caption
from data_prep.sources import SOURCES
from data_prep.sources._listed import TEXT_KEYS, ListSource


@SOURCES.register("pairs")
class PairsSource(ListSource):
    """Images with a caption: {"image_path", "text_prompt" (or "text", or "caption")} a line, the published pair
    format."""

    keys = ("images", "image_key", "text_key")

    def described(self, row: dict[str, Any], image: ReadImage, origin: str) -> SourceRow:
        keys = (self.settings.text_key,) if self.settings.text_key else TEXT_KEYS
        text = first_caption(row, keys)
        if not text:
            return SourceRow({}, problem=f"no {' or '.join(keys)}", origin=origin)
        return SourceRow({}, image, text, origin=origin)
