"""The `parquet` source: a column of images (bytes, or Hugging Face's {"bytes", "path"}) and one of captions."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from data_prep.file_source import FileSource
from data_prep.settings import TokenizeSettings
from data_prep.source import SourceRow, first_caption
from data_prep.sources import SOURCES
from data_prep.sources._listed import TEXT_KEYS
from liquid_train.errors import UserError
from liquid_train.image_tokenizer.preprocess import read_rgb
from liquid_train.packages import missing_package

IMAGE_COLUMNS = ("image", "img", "jpg", "png", "image_bytes")
ROWS_AT_ONCE = 32


@SOURCES.register("parquet")
class ParquetSource(FileSource):
    """Row groups are read one at a time; tokenize.image_key and tokenize.text_key name the columns where they have
    other names."""

    suffixes = (".parquet",)
    seeks = True
    keys = ("image_key", "text_key")

    def __init__(self, settings: TokenizeSettings, seed: int) -> None:
        try:
            import pyarrow.parquet as parquet
        except ImportError as error:
            raise UserError(missing_package("tokenize.source=parquet", "pyarrow", "parquet")) from error
        super().__init__(settings, seed)
        self._parquet = parquet

    def count(self, name: str) -> int:
        file = self._open(name)
        self._columns(name, file)  # reports a wrong name before anything is encoded
        return int(file.metadata.num_rows)

    def rows_from(self, name: str, start: int) -> Iterator[SourceRow]:
        file = self._open(name)
        first = 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if first + rows > start:
                yield from islice(self._group(name, file, group, first), max(0, start - first), None)
            first += rows

    def _group(self, name: str, file: Any, group: int, first: int) -> Iterator[SourceRow]:
        """All rows of a row group, whose first is row number `first`: as many as its head says, also where its data is
        damaged."""
        image, text = self._columns(name, file)
        left = file.metadata.row_group(group).num_rows
        number = first
        try:
            for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=[image, text]):
                for cell, words in zip(batch.column(image), batch.column(text), strict=True):
                    yield _row(cell, words, f"{name}, row {number}")
                    number += 1
        except (OSError, ValueError):  # pyarrow's ArrowInvalid is a ValueError
            for row in range(number, first + left):
                yield SourceRow({}, problem="damaged row group", origin=f"{name}, row {row}")

    def _columns(self, name: str, file: Any) -> tuple[str, str]:
        """Names of the columns with the images and the captions."""
        names = file.schema_arrow.names
        image = _column(names, self.settings.image_key, IMAGE_COLUMNS, "image_key", self.files[name])
        return image, _column(names, self.settings.text_key, TEXT_KEYS, "text_key", self.files[name])

    def _open(self, name: str) -> Any:
        try:
            return self._parquet.ParquetFile(self.files[name])
        except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
            raise UserError(
                f"tokenize.input={self.files[name]}: not a parquet file that can be read ({error}); remove it or "
                "fetch it again"
            ) from error


def _column(names: list[str], asked: str | None, usual: tuple[str, ...], key: str, path: Path) -> str:
    found = next((n for n in ((asked,) if asked else usual) if n in names), None)
    if found is None:
        raise UserError(
            f"tokenize.{key}={asked}: {path} has the columns {', '.join(names)}; name the right one with tokenize.{key}"
        )
    return found


def _row(image: Any, words: Any, origin: str) -> SourceRow:
    """image, words: pyarrow scalars."""
    content = image.as_py()
    content = content.get("bytes") if isinstance(content, dict) else content
    if not isinstance(content, bytes):
        return SourceRow({}, problem="no image", origin=origin)
    try:
        text = first_caption({"text": words.as_py()}, ("text",))
    except UnicodeDecodeError:
        return SourceRow({}, problem="caption is not UTF-8", origin=origin)
    return SourceRow({}, partial(read_rgb, content), text, origin=origin)
