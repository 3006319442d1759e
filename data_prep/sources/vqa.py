"""The `vqa` source: a list with the path of an image and questions about it a row."""

from __future__ import annotations

from typing import Any

from data_prep.source import ReadImage, SourceRow
from data_prep.sources import SOURCES
from data_prep.sources._captions import read_captions
from data_prep.sources._listed import ListSource, answered_questions


@SOURCES.register("vqa")
class VQASource(ListSource):
    """Images with questions: {"image_path", "questions": [{"question", "answers": [...]}]} a row; `question`,
    `answer` alone too."""

    def described(self, row: dict[str, Any], image: ReadImage, origin: str) -> SourceRow:
        questions = answered_questions(row["questions"] if isinstance(row.get("questions"), list) else [row])
        if not questions:
            return SourceRow({}, problem="no question with an answer", origin=origin)
        text, captions = read_captions(row, ("caption", "captions"))
        return SourceRow({"questions": questions, **captions}, image, text, origin=origin)
