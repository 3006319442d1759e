"""The `pairs` source: a list with the path of an image and its caption, or captions, a row."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.source import ReadImage, SourceRow
from data_prep.sources import SOURCES
from data_prep.sources._captions import TEXT_KEYS, read_captions
from data_prep.sources._listed import ListSource
from data_prep.sources._rows import ListRow, json_rows
from data_prep.sources._tables import TABLES, coco_rows, is_coco, table_rows

KEYS = (*TEXT_KEYS, "sentences", "comment", "raw")  # the last three: Flickr30k's


@SOURCES.register("pairs")
class PairsSource(ListSource):
    """Images with a caption: {"image_path", "text_prompt" (or "text", or "caption")} a line, the published pair
    format; a JSON array or a table of such rows; COCO's annotations."""

    suffixes = (*ListSource.suffixes, *TABLES)
    keys = ("images", "image_key", "text_key", "keep")

    @property
    def text_keys(self) -> tuple[str, ...]:
        return (self.settings.text_key,) if self.settings.text_key else KEYS

    def needed(self) -> dict[str, tuple[str, ...]]:
        return {**super().needed(), "text_key": self.text_keys}

    def rows(self, path: Path) -> Iterator[ListRow]:
        if path.name.lower().endswith(TABLES):
            return table_rows(path, self.image_keys)
        return coco_rows(path) if path.name.lower().endswith(".json") and is_coco(path) else json_rows(path)

    def described(self, row: dict[str, Any], image: ReadImage, origin: str) -> SourceRow:
        text, captions = read_captions(row, self.text_keys)
        if not text:
            return SourceRow({}, problem=f"no {' or '.join(self.text_keys[:3])}", origin=origin)
        return SourceRow(captions, image, text, origin=origin)
