"""The `vqa` source: JSON lines with the path of an image and questions about it."""

from __future__ import annotations

from typing import Any

from data_prep.source import ReadImage, SourceRow, first_caption
from data_prep.sources import SOURCES
from data_prep.sources._listed import ListSource, answered_questions


@SOURCES.register("vqa")
class VQASource(ListSource):
    """Images with questions: {"image_path", "questions": [{"question", "answers": [...]}]} a line; `question`,
    `answer` alone too."""

    def described(self, row: dict[str, Any], image: ReadImage, origin: str) -> SourceRow:
        questions = answered_questions(row["questions"] if isinstance(row.get("questions"), list) else [row])
        if not questions:
            return SourceRow({}, problem="no question with an answer", origin=origin)
        return SourceRow({"questions": questions}, image, first_caption(row, ("caption",)), origin=origin)
