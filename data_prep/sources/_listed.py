"""What `pairs`, `vqa` and `chat` have in common: lists with paths of images, JSON lines, questions as in KEY.json."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from data_prep.file_source import FileSource
from data_prep.settings import TokenizeSettings
from data_prep.source import ReadImage, SourceRow, readable
from liquid_train.errors import UserError
from liquid_train.image_tokenizer.preprocess import read_rgb

TEXT_KEYS = ("text_prompt", "text", "caption")

ListRow = dict[str, Any] | str  # an entry of the list, or why it is none


class ListSource(FileSource):
    """Rows with `image_path`, relative to tokenize.images or else to the list's own folder."""

    suffixes: tuple[str, ...] = (".jsonl",)
    keys: tuple[str, ...] = ("images", "image_key")
    image_key = "image_path"

    def __init__(self, settings: TokenizeSettings, seed: int) -> None:
        super().__init__(settings, seed)
        if settings.images is not None and not Path(settings.images).expanduser().is_dir():
            raise UserError(
                f"tokenize.images={settings.images}: no such folder; paths of images in the list are taken from there"
            )

    def rows_from(self, name: str, start: int) -> Iterator[SourceRow]:
        path = self.files[name]
        folder = Path(self.settings.images).expanduser() if self.settings.images else path.parent
        for number, row in enumerate(islice(self.rows(path), start, None), start):
            origin = f"{name}, row {number}"
            if isinstance(row, str):
                yield SourceRow({}, problem=row, origin=origin)
            else:
                yield self.read_row(row, folder, origin)

    def count(self, name: str) -> int:
        return sum(1 for _ in self.rows(self.files[name]))

    def rows(self, path: Path) -> Iterator[ListRow]:
        return jsonl_rows(path)

    def read_row(self, row: dict[str, Any], folder: Path, origin: str) -> SourceRow:
        image = row.get(self.settings.image_key or self.image_key)
        if not isinstance(image, str) or not image:
            return SourceRow({}, problem=f"no {self.settings.image_key or self.image_key}", origin=origin)
        return self.described(row, partial(read_rgb, folder / image), f"{origin} ({image})")

    def described(self, row: dict[str, Any], image: ReadImage, origin: str) -> SourceRow:
        raise NotImplementedError


def answered_questions(entries: list[Any]) -> list[dict[str, Any]]:
    """Those of a list's questions that have an answer, as KEY.json has them."""
    return [q for q in map(question, entries) if q is not None]


def question(entry: Any) -> dict[str, Any] | None:
    """One question with its answers as KEY.json has it; None where either is missing."""
    if not isinstance(entry, dict):
        return None
    answers = entry.get("answers") if entry.get("answers") is not None else entry.get("answer")
    answers = [
        a.get("answer") if isinstance(a, dict) else a for a in (answers if isinstance(answers, list) else [answers])
    ]
    answers = [str(a) for a in answers if isinstance(a, (str, int, float)) and str(a).strip()]
    asked = entry.get("question")
    return {"question": asked, "answers": answers} if isinstance(asked, str) and asked.strip() and answers else None


def jsonl_rows(path: Path) -> Iterator[ListRow]:
    """One row a line that is not blank."""
    with open(path, "rb") as file:
        for line in file:
            if line.strip():
                yield parse_row(line)


def parse_row(line: bytes) -> ListRow:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return "row is not JSON"
    if b"\\u" in line:
        row = readable(row)
    return row if isinstance(row, dict) else "row is not a JSON object"
