"""Lists of images with captions that are no JSON rows: tables of text (Flickr30k, Hugging Face), COCO's annotations."""

from __future__ import annotations

import ast
import csv
import json
import re
from collections.abc import Iterator
from itertools import groupby, repeat
from pathlib import Path
from typing import Any

from data_prep.source import DAMAGED
from data_prep.sources._rows import NO_COCO, NOT_UTF8, ListRow
from liquid_train.text_normalizer import normalize_json, normalize_text

TABLES = (".csv", ".tsv")
DELIMITERS = (",", "\t", "|", ";")
LARGEST_CELL = 2**26  # characters; csv's own limit is 2**17
BEGINNING = 2**16  # bytes, in which COCO's annotations show what they are
UNQUOTED = ("\t", "|")  # Flickr30k's results.csv and most .tsv have quotes as part of their texts
QUOTED = re.compile(r'"(?:[^"]|"")*"')
END_IN_QUOTES = "unexpected end of data"  # csv's word for a file that ends inside a quoted cell


def table_rows(path: Path, image_keys: tuple[str, ...]) -> Iterator[ListRow]:
    """Rows of a table whose first line names its columns. Rows of one image that follow each other are one row, its
    other cells in lists; of a row that cannot be read, each line is one."""
    csv.field_size_limit(LARGEST_CELL)
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        header = file.readline()
        delimiter = max(DELIMITERS, key=header.count)
        if delimiter in UNQUOTED:
            reader = csv.reader(file, delimiter=delimiter, quoting=csv.QUOTE_NONE)
        else:  # strict, for otherwise a quote that is never closed swallows the rest of the table
            reader = csv.reader(file, delimiter=delimiter, strict=True)
        names = [name.strip() for name in next(csv.reader([header], delimiter=delimiter), [])]
        image = next((key for key in image_keys if key in names), None)
        for _, group in groupby(enumerate(_cells(reader, names)), lambda row: _image(row, image)):
            yield _joined([row for _, row in group], image)


def _image(numbered: tuple[int, ListRow], image: str | None) -> Any:
    """What rows of one image have in common; their number for rows without one."""
    number, row = numbered
    return (row[image] if image and isinstance(row, dict) else None) or number


def _cells(reader: Any, names: list[str]) -> Iterator[ListRow]:
    while True:
        begin = reader.line_num
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problem = DAMAGED if END_IN_QUOTES in str(error) else "a row that is quoted wrongly"
            yield from repeat(problem, max(1, reader.line_num - begin))
            continue
        if not cells:
            continue
        if len(cells) != len(names):
            problem = "a row with more or fewer cells than the table has columns"
            yield from repeat(problem, max(1, reader.line_num - begin))
        elif any(map(NOT_UTF8.search, cells)):
            yield "row is not UTF-8"
        else:
            yield {name: _cell(normalize_text(cell).strip()) for name, cell in zip(names, cells, strict=True)}


def _cell(text: str) -> Any:
    """A cell, which may be in quotes all the same, or spell a list of captions, in JSON or as Python (pandas) does."""
    if QUOTED.fullmatch(text):
        text = text[1:-1].replace('""', '"')
    if not (text.startswith("[") and text.endswith("]")):
        return text
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(value, list) and value and all(isinstance(entry, str) for entry in value):
            return value
    return text


def _joined(rows: list[ListRow], image: str | None) -> ListRow:
    first = rows[0]
    if len(rows) == 1 or isinstance(first, str):
        return first
    return {
        name: value if name == image else [row[name] for row in rows if isinstance(row, dict)]
        for name, value in first.items()
    }


def is_coco(path: Path) -> bool:
    """Whether a .json is one object that lists `images`, as COCO's annotations and Karpathy's splits do."""
    with open(path, "rb") as file:
        beginning = file.read(BEGINNING).lstrip(b"\xef\xbb\xbf \t\r\n")
        if not beginning.startswith(b"{"):
            return False
        file.seek(0)
        first = file.readline(BEGINNING)
        rest = file.read(1)
    if rest and first.endswith(b"\n"):
        try:
            json.loads(first)
            return False  # JSON lines
        except ValueError:
            pass
    return b'"images"' in beginning or b'"annotations"' in beginning or b'"info"' in beginning


def coco_rows(path: Path) -> Iterator[ListRow]:
    """{"file_name", "captions", ...} of every image, in the file's order. The file is held in memory."""
    try:
        content = normalize_json(json.loads(path.read_bytes()))
        images, annotations = content["images"], content.get("annotations", [])
        captions: dict[Any, list[Any]] = {}
        for annotation in annotations:
            if "caption" in annotation:
                captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
        named = [dict(image) for image in images]
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        yield NO_COCO
        return
    for image in named:
        if isinstance(image.get("id"), (int, str)) and image["id"] in captions:
            image["captions"] = captions.pop(image["id"])
        if "filepath" in image and "filename" in image:  # Karpathy's: folder and name
            image["file_name"] = f"{image['filepath']}/{image['filename']}"
        yield image
    for texts in captions.values():
        for _ in texts:
            yield "caption of an image that is not listed"
