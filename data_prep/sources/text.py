"""The `text` source: documents of JSON lines, plain or compressed (.gz, .zst), and of parquet."""

from __future__ import annotations

from typing import Any

from data_prep.source import SourceRow
from data_prep.sources import SOURCES
from data_prep.sources._documents import DocumentSource


@SOURCES.register("text")
class TextSource(DocumentSource):
    """One document a row, under `text`; what is longer than tokenize.max_characters is cut into several samples when
    it is written."""

    usual = ("text",)

    def document(self, value: Any, origin: str) -> SourceRow:
        if not isinstance(value, str) or not value.strip():
            return SourceRow({}, problem=f"no {self.names[0]}", origin=origin)
        return SourceRow({}, text=value, origin=origin)
