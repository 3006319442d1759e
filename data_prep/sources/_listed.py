"""What `pairs`, `vqa` and `chat` have in common: lists with paths of images, and questions as in KEY.json."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from data_prep.file_source import FileSource
from data_prep.remote_input import RemotePath
from data_prep.settings import TokenizeSettings
from data_prep.source import ImageFile, ReadImage, SourceRow, Survey
from data_prep.sources._captions import value_of
from data_prep.sources._kept import with_kept
from data_prep.sources._keys import NeededKeys, survey_rows
from data_prep.sources._rows import ListRow, json_rows

# Usual names of a row's image file: the published format's, then those of Hugging Face, LLaVA, COCO, JourneyDB, Flickr
IMAGE_KEYS = ("image_path", "file_name", "image", "img_path", "filename", "filepath", "image_name", "path")

URL = re.compile(r"https?://", re.IGNORECASE)


class ListSource(FileSource):
    """Rows with the path of an image, relative to tokenize.images or else to the list's own folder."""

    suffixes: tuple[str, ...] = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json")
    keys: tuple[str, ...] = ("images", "image_key", "keep")
    image_keys: tuple[str, ...] = IMAGE_KEYS

    def __init__(self, settings: TokenizeSettings, seed: int) -> None:
        super().__init__(settings, seed)
        if settings.image_key:
            self.image_keys = (settings.image_key,)

    def rows_from(self, name: str, start: int) -> Iterator[SourceRow]:
        path, folder = self.files[name], self.images_folder(name)
        for number, row in enumerate(islice(self.rows(path), start, None), start):
            origin = f"{name}, row {number}"
            if isinstance(row, str):
                yield SourceRow({}, problem=row, origin=origin)
            else:
                yield with_kept(self.read_row(row, folder, origin), row, self.settings.keep)

    def survey(self, name: str) -> Survey:
        """Raises UserError where no row has what every row needs."""
        path = self.files[name]
        return survey_rows(name, path, self.rows(path), NeededKeys(self.settings, self.needed()))

    def needed(self) -> dict[str, tuple[str, ...]]:
        """What every row must have: {setting that names it: its usual names}."""
        return {"image_key": self.image_keys}

    def rows(self, path: Path) -> Iterator[ListRow]:
        return json_rows(path)

    def read_row(self, row: dict[str, Any], folder: Path | RemotePath, origin: str) -> SourceRow:
        image = image_name(row, self.image_keys)
        if image is None:
            return SourceRow({}, problem=f"no {self.image_keys[0]}", origin=origin)
        if URL.match(image):
            return SourceRow({}, problem="the image is a URL, no file", origin=f"{origin} ({image})")
        return self.described(row, ImageFile(folder / image), f"{origin} ({image})")

    def described(self, row: dict[str, Any], image: ReadImage, origin: str) -> SourceRow:
        raise NotImplementedError


def image_name(row: dict[str, Any], keys: tuple[str, ...]) -> str | None:
    """The path under the first of `keys` that has one, also in a list of one; None without."""
    for key in keys:
        value = value_of(row, key)
        value = value[0] if isinstance(value, list) and len(value) == 1 else value
        if isinstance(value, str) and value:
            return value
    return None


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
