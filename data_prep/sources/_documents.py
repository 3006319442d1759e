"""What `text` and `ids` have in common: rows of JSON lines or parquet of which each is one document."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from itertools import islice
from typing import Any

from data_prep.file_source import FileSource
from data_prep.settings import TokenizeSettings
from data_prep.source import SourceRow, Survey
from data_prep.sources._captions import value_of
from data_prep.sources._kept import with_kept
from data_prep.sources._keys import NeededKeys, survey_rows
from data_prep.sources._parquet import columns_to_keep, find_column, open_parquet, parquet_rows
from data_prep.sources._rows import LINES, ListRow, jsonl_rows

PARQUET = ".parquet"


class DocumentSource(FileSource):
    """usual: the names under which a row may have its document."""

    has_images = False
    suffixes = (*LINES, ".json.gz", ".json.zst", PARQUET)
    keys: tuple[str, ...] = ("text_key", "keep")
    usual: tuple[str, ...]

    def __init__(self, settings: TokenizeSettings, seed: int) -> None:
        super().__init__(settings, seed)
        self.names = (settings.text_key,) if settings.text_key else self.usual

    @abstractmethod
    def document(self, value: Any, origin: str) -> SourceRow:
        """The row that a value under the key makes; None: there is none."""

    def rows_from(self, name: str, start: int) -> Iterator[SourceRow]:
        for number, row in enumerate(self._rows(name, start), start):
            origin = f"{name}, row {number}"
            if isinstance(row, str):
                yield SourceRow({}, problem=row, origin=origin)
                continue
            value = None
            for key in self.names:
                if (value := value_of(row, key)) is not None:
                    break
            yield with_kept(self.document(value, origin), row, self.settings.keep)

    def _rows(self, name: str, start: int) -> Iterator[ListRow]:
        path = self.files[name]
        if not name.lower().endswith(PARQUET):
            return islice(jsonl_rows(path), start, None)
        file = open_parquet(path, self.settings)
        column = find_column(file, path, self.settings, "text_key", self.usual)
        return parquet_rows(file, list(dict.fromkeys([column, *columns_to_keep(file, path, self.settings)])), start)

    def survey(self, name: str) -> Survey:
        """Raises UserError where no row has a document's key."""
        path = self.files[name]
        if name.lower().endswith(PARQUET):
            file = open_parquet(path, self.settings)
            find_column(file, path, self.settings, "text_key", self.usual)
            columns_to_keep(file, path, self.settings)
            return Survey(int(file.metadata.num_rows))
        return survey_rows(name, path, jsonl_rows(path), NeededKeys(self.settings, {"text_key": self.names}))
