"""Cutting long texts into documents at the border that disturbs least."""

from __future__ import annotations

from collections.abc import Iterator


def cut_paragraphs(text: str, max_characters: int) -> Iterator[str]:
    """Cut at paragraph borders, inside a longer paragraph at lines; only a single longer line exceeds
    max_characters."""
    document = ""
    for paragraph in text.split("\n\n"):
        whole = len(paragraph) <= max_characters
        for i, piece in enumerate([paragraph] if whole else paragraph.split("\n")):
            border = "\n\n" if i == 0 else "\n"
            if document and len(document) + len(border) + len(piece) > max_characters:
                yield document
                document = ""
            document = document + border + piece if document else piece
    if document.strip():
        yield document


def cut_text(text: str, max_characters: int) -> Iterator[str]:
    """As cut_paragraphs, and a longer line at spaces, or anywhere where it has none: no document exceeds
    max_characters."""
    if len(text) <= max_characters:
        yield text
        return
    for document in cut_paragraphs(text, max_characters):
        while len(document) > max_characters:
            space = document.rfind(" ", max_characters // 2, max_characters + 1)
            end = space if space > 0 else max_characters
            if document[:end].strip():
                yield document[:end]
            document = document[end:].lstrip(" ") if space > 0 else document[end:]
        if document.strip():
            yield document
