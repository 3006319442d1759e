"""The `parquet` source: a column of images (bytes, paths, or Hugging Face's {"bytes", "path"}) and one of captions."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.file_source import FileSource
from data_prep.remote_input import RemotePath
from data_prep.source import ImageFile, ReadImage, SourceRow, Survey
from data_prep.sources import SOURCES
from data_prep.sources._captions import TEXT_KEYS, read_captions, value_of
from data_prep.sources._kept import kept
from data_prep.sources._listed import URL
from data_prep.sources._parquet import columns_to_keep, find_column, open_parquet, parquet_rows
from liquid_train.image_tokenizer.preprocess import read_rgb

IMAGE_COLUMNS = ("image", "img", "jpg", "png", "webp", "image_bytes", "images", "image_path", "file_name")
TEXT_COLUMNS = (*TEXT_KEYS, "sentences", "raw", "txt")


@SOURCES.register("parquet")
class ParquetSource(FileSource):
    """Row groups are read one at a time; tokenize.image_key and tokenize.text_key name the columns where they have
    other names. Paths are relative to tokenize.images or else to the file's own folder."""

    suffixes = (".parquet",)
    seeks = True
    keys = ("image_key", "text_key", "images", "keep")

    def survey(self, name: str) -> Survey:
        """Raises UserError for a file without the columns."""
        file = open_parquet(self.files[name], self.settings)
        self._columns(name, file)
        columns_to_keep(file, self.files[name], self.settings)
        return Survey(int(file.metadata.num_rows))

    def rows_from(self, name: str, start: int) -> Iterator[SourceRow]:
        file = open_parquet(self.files[name], self.settings)
        path = self.files[name]
        image, text = self._columns(name, file)
        folder = self.images_folder(name)
        columns = list(dict.fromkeys([image, text, *columns_to_keep(file, path, self.settings)]))
        for number, row in enumerate(parquet_rows(file, columns, start), start):
            origin = f"{name}, row {number}"
            if isinstance(row, str):
                yield SourceRow({}, problem=row, origin=origin)
                continue
            read = image_of(value_of(row, image), folder)
            if isinstance(read, str):
                yield SourceRow({}, problem=read, origin=origin)
                continue
            words, captions = read_captions(row, (text,))
            yield SourceRow({**kept(row, self.settings.keep), **captions}, read, words, origin=origin)

    def _columns(self, name: str, file: Any) -> tuple[str, str]:
        """Names of the columns with the images and the captions."""
        path = self.files[name]
        image = find_column(file, path, self.settings, "image_key", IMAGE_COLUMNS)
        return image, find_column(file, path, self.settings, "text_key", TEXT_COLUMNS)


def image_of(cell: Any, folder: Path | RemotePath) -> ReadImage | str:
    """What reads a cell's image: its bytes, or the file that it names; why it cannot be used in its place."""
    if isinstance(cell, list):
        if len(cell) > 1:
            return "more than one image"
        cell = cell[0] if cell else None
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, bytes):
        return partial(read_rgb, cell)
    if not isinstance(cell, str) or not cell:
        return "no image"
    return "the image is a URL, no file" if URL.match(cell) else ImageFile(folder / cell)
