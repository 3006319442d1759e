"""Rows of a parquet file, a row group at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.settings import TokenizeSettings
from data_prep.sources._keys import missing_key
from data_prep.sources._rows import ListRow
from liquid_train.errors import UserError
from liquid_train.packages import missing_package
from liquid_train.text_normalizer import normalize_json

ROWS_AT_ONCE = 32


def open_parquet(path: Path, settings: TokenizeSettings) -> Any:
    """A pyarrow.parquet.ParquetFile. Raises UserError for a file that is none, as one that breaks off, and without
    pyarrow."""
    try:
        from pyarrow.parquet import ParquetFile  # optional
    except ImportError as error:
        raise UserError(missing_package(f"tokenize.source={settings.source}", "pyarrow", "parquet")) from error
    try:
        return ParquetFile(path)
    except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
        raise UserError(
            f"tokenize.input={path}: not a parquet file that can be read ({error}); remove it or fetch it again"
        ) from error


def find_column(file: Any, path: Path, settings: TokenizeSettings, setting: str, usual: tuple[str, ...]) -> str:
    """The column that tokenize.`setting` names, or the first of the usual names that is there; "a.b": b in the struct
    a. Raises UserError where there is none."""
    asked = getattr(settings, setting)
    names = (asked,) if asked else usual
    found = next((name for name in names if has_column(file.schema_arrow, name)), None)
    if found is None:
        raise missing_key(settings, setting, names, path, list(file.schema_arrow.names))
    return found


def columns_to_keep(file: Any, path: Path, settings: TokenizeSettings) -> list[str]:
    """Those of tokenize.keep. Raises UserError for one that is not there."""
    for name in settings.keep or ():
        if not has_column(file.schema_arrow, name):
            there = ", ".join(file.schema_arrow.names)
            raise UserError(f"tokenize.keep={name}: {path} has no such column; it has {there}; leave it out")
    return list(settings.keep or ())


def has_column(fields: Any, name: str) -> bool:
    """fields: a pyarrow schema or struct type."""
    first, _, rest = name.partition(".")
    index = fields.get_field_index(name)
    if index >= 0 or not rest:
        return bool(index >= 0)
    index = fields.get_field_index(first)
    if index < 0:
        return False
    kind = fields.field(index).type
    return hasattr(kind, "get_field_index") and has_column(kind, rest)


def parquet_rows(file: Any, columns: list[str], start: int) -> Iterator[ListRow]:
    """{column: value} of the rows from number `start` on; the problem in place of a row: as many as the file's footer
    says, also where its data is damaged. Raises OSError where it cannot be read now."""
    first = 0
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if first + rows > start:
            yield from _group(file, columns, group, max(0, start - first))
        first += rows


def _group(file: Any, columns: list[str], group: int, skipped: int) -> Iterator[ListRow]:
    rows, done = file.metadata.row_group(group).num_rows, 0
    try:
        for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=columns):
            for i in range(batch.num_rows):
                done += 1
                if done > skipped:
                    yield _row(batch, i)
    except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
        if isinstance(error, OSError) and error.errno is not None:
            raise
        for _ in range(max(done, skipped), rows):
            yield "damaged row group"


def _row(batch: Any, i: int) -> ListRow:
    try:
        return {name: normalize_json(batch.column(place)[i].as_py()) for place, name in enumerate(batch.schema.names)}
    except UnicodeDecodeError:
        return "text is not UTF-8"
