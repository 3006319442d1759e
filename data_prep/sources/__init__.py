"""Where samples come from: `tokenize.source` names one of these."""

from __future__ import annotations

from collections.abc import Callable

from data_prep.settings import TokenizeSettings
from data_prep.sources.base import Source
from data_prep.sources.folder import FolderSource
from data_prep.sources.listed import ChatSource, PairsSource, VQASource
from data_prep.sources.packaged import EasyVQASource, PythonDocsSource
from data_prep.sources.parquet import ParquetSource
from data_prep.sources.text import TextSource
from data_prep.sources.webdataset import WebdatasetSource
from liquid_train.errors import UserError

FILE_SOURCES: dict[str, Callable[[TokenizeSettings], Source]] = {
    "pairs": PairsSource,
    "webdataset": WebdatasetSource,
    "folder": FolderSource,
    "vqa": VQASource,
    "chat": ChatSource,
    "text": TextSource,
    "parquet": ParquetSource,
}
PACKAGED_SOURCES: dict[str, Callable[[TokenizeSettings, int], Source]] = {
    "easy_vqa": EasyVQASource,
    "python_docs": PythonDocsSource,
}


def open_source(settings: TokenizeSettings, seed: int) -> Source:
    """The source that tokenize.source names. Raises UserError for an unknown one and for settings it cannot follow."""
    if settings.source in PACKAGED_SOURCES:
        return PACKAGED_SOURCES[settings.source](settings, seed)
    if settings.source in FILE_SOURCES:
        return FILE_SOURCES[settings.source](settings)
    raise UserError(
        f"tokenize.source={settings.source}: no such source; one of {', '.join([*FILE_SOURCES, *PACKAGED_SOURCES])}"
    )
