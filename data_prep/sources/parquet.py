"""The `parquet` source: a column of pictures (bytes, or Hugging Face's {"bytes", "path"}) and one of captions."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.images import read_rgb
from data_prep.sources.base import FileSource, Item
from data_prep.sources.listed import TEXT_KEYS
from liquid_train.config import TokenizeSettings

IMAGE_COLUMNS = ("image", "img", "jpg", "png", "image_bytes")
ROWS_AT_ONCE = 32


class ParquetSource(FileSource):
    """Row groups are read one at a time; tokenize.image_key and tokenize.text_key name the columns where they have other names."""

    suffixes = (".parquet",)
    keys = ("image_key", "text_key")

    def __init__(self, settings: TokenizeSettings) -> None:
        try:
            import pyarrow.parquet as parquet
        except ImportError as error:
            raise ValueError("tokenize.source=parquet needs pyarrow: pip install 'liquid-train[parquet]'") from error
        super().__init__(settings)
        self._parquet = parquet

    def count(self, name: str) -> int:
        return int(self._open(name).metadata.num_rows)

    def read(self, name: str, start: int) -> Iterator[Item]:
        file = self._open(name)
        names = file.schema_arrow.names
        image = _column(names, self.settings.image_key, IMAGE_COLUMNS, "image_key", self.files[name])
        text = _column(names, self.settings.text_key, TEXT_KEYS, "text_key", self.files[name])
        first = 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if first + rows > start:
                number = first
                for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=[image, text]):
                    for picture, caption in zip(batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True):
                        if number >= start:
                            yield _item(picture, caption, f"{name}, row {number}")
                        number += 1
            first += rows

    def _open(self, name: str) -> Any:
        try:
            return self._parquet.ParquetFile(self.files[name])
        except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
            raise ValueError(f"tokenize.input={self.files[name]}: not a parquet file that can be read ({error}); remove it or fetch it again") from error


def _column(names: list[str], asked: str | None, usual: tuple[str, ...], key: str, path: Path) -> str:
    found = next((n for n in ((asked,) if asked else usual) if n in names), None)
    if found is None:
        raise ValueError(f"tokenize.{key}={asked}: {path} has the columns {', '.join(names)}; name the right one with tokenize.{key}")
    return found


def _item(picture: Any, caption: Any, origin: str) -> Item:
    content = picture.get("bytes") if isinstance(picture, dict) else picture
    if not isinstance(content, bytes):
        return Item({}, problem="no picture", origin=origin)
    text = caption.strip() if isinstance(caption, str) else None
    return Item({}, partial(read_rgb, content), text or None, origin=origin)
