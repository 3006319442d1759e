"""The Python language reference as the standard library carries it (`pydoc_data.topics`, 465 kB): plain text to train
on.

Topics repeat each other: `specialnames` alone holds `customization`, `attribute-access` and others word for word, a
fifth of all text. A paragraph is therefore kept only once, in the test topic if one has it: otherwise held-out text
would also be training text.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from data_prep.encode.documents import cut_paragraphs
from data_prep.settings import TokenizeSettings
from data_prep.source import Source, SourceRow
from data_prep.sources import SOURCES
from data_prep.sources._packaged import check_packaged

SPLITS = ("train", "test")
MAX_CHARACTERS = 1500  # of one document
MIN_REPEAT = 40  # characters from which on a paragraph that occurs twice is a repetition, not a formula
TEST_SHARE = 12  # about one topic in so many is a test topic


@dataclass(frozen=True)
class TextDocument:
    topic: str
    part: int  # number of this document in its topic, from 0
    text: str


def load_topics() -> dict[str, str]:
    """Topic name -> its text, sorted by name."""
    from pydoc_data.topics import topics

    return dict(sorted(topics.items()))


def is_test_topic(name: str) -> bool:
    """Decided by a hash of the name, so that it does not depend on the topics next to it."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % TEST_SHARE == 0


def content_digest(topics: dict[str, str]) -> str:
    """sha256 over names and texts: another Python version has another reference."""
    digest = hashlib.sha256()
    for name, text in sorted(topics.items()):
        digest.update(f"{name}\0{text}\0".encode())
    return digest.hexdigest()


def split_documents(
    topics: dict[str, str], split: str, max_characters: int = MAX_CHARACTERS
) -> tuple[list[TextDocument], int]:
    """Documents of 'train' or 'test' in order of topic, and how many repeated paragraphs this split left out."""
    by_split = {
        "test": [n for n in sorted(topics) if is_test_topic(n)],
        "train": [n for n in sorted(topics) if not is_test_topic(n)],
    }
    seen: set[str] = set()
    documents: list[TextDocument] = []
    repeated = 0
    for current in ("test", "train"):  # test topics first: they keep what both have
        for name in by_split[current]:
            kept, left_out = _new_paragraphs(topics[name], seen)
            if current == split:
                repeated += left_out
                documents += [
                    TextDocument(name, i, text)
                    for i, text in enumerate(cut_paragraphs("\n\n".join(kept), max_characters))
                ]
    return documents, repeated


def _new_paragraphs(text: str, seen: set[str]) -> tuple[list[str], int]:
    """Paragraphs that `seen` does not hold yet (it is extended), and the number of the others."""
    kept = []
    paragraphs = [p for p in text.split("\n\n") if p.strip()]
    for paragraph in paragraphs:
        words = " ".join(paragraph.split())
        if len(words) < MIN_REPEAT or words not in seen:
            kept.append(paragraph)
        seen.add(words)
    return kept, len(paragraphs) - len(kept)


@SOURCES.register("python_docs")
class PythonDocsSource(Source):
    """Documents cut from the Python language reference."""

    has_images = False

    def __init__(self, settings: TokenizeSettings, seed: int) -> None:
        super().__init__(settings, seed)
        check_packaged(settings, SPLITS)
        self.split = settings.split
        self.topics = load_topics()
        self.documents, repeated = split_documents(self.topics, self.split)
        self._omitted = Counter({"repeated paragraph": repeated})

    def recipe(self) -> dict[str, Any]:
        return {
            "split": self.split,
            "content": content_digest(self.topics),
            "max_characters": MAX_CHARACTERS,
        }

    def omitted(self) -> Counter[str]:
        return self._omitted

    def inputs(self) -> list[str]:
        return [self.split]

    def count(self, name: str) -> int:
        return len(self.documents)

    def rows_from(self, name: str, start: int) -> Iterator[SourceRow]:
        for number, document in enumerate(islice(self.documents, start, None), start):
            key = f"{self.split}-{number:05d}"
            yield SourceRow({"topic": document.topic, "part": document.part}, text=document.text, key=key, origin=key)
