"""A packed sequence in words: its documents with task, tokens, what is learned of them, and their images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from liquid_train.data.packing import Sequence
from liquid_train.data.sequence_pieces import IGNORED
from liquid_train.vocabulary import Vocabulary


@dataclass(frozen=True)
class Span:
    """Consecutive tokens of one kind: text (decoded) or the codes of an image; learned: whether they are targets of
    the loss."""

    text: str
    codes: np.ndarray | None
    tokens: int
    learned: bool


@dataclass(frozen=True)
class ReadableDocument:
    """name: "source/sample key". first: its place in the sequence. targets: how many of its tokens the loss counts."""

    name: str
    task: str
    first: int
    tokens: int
    targets: int
    spans: list[Span]

    def codes(self, shape: tuple[int, int] | None = None) -> np.ndarray | None:
        """The codes of its image, [rows, columns] (a square grid unless `shape` is given); None where it has none."""
        found = next((span.codes for span in self.spans if span.codes is not None), None)
        if found is None:
            return None
        side = round(len(found) ** 0.5)
        rows, columns = shape or (side, side)
        return found.reshape(rows, columns) if rows * columns == len(found) else None

    def text(self) -> str:
        """What is learned between » and «, images as the number of their codes."""
        parts = [f"<{span.tokens} codes>" if span.codes is not None else span.text for span in self.spans]
        return "".join(f"»{part}«" if span.learned else part for span, part in zip(self.spans, parts, strict=True))


def documents(sequence: Sequence, vocabulary: Vocabulary, names: tuple[str, ...]) -> Iterator[ReadableDocument]:
    """The documents of a sequence in order, without its padding. names: of the run's tasks."""
    first = 0
    for name, length in zip(sequence.names, sequence.lengths, strict=False):  # lengths has the padding last
        part = slice(first, first + length)
        ids, learned = sequence.ids[part], sequence.labels[part] != IGNORED
        task = names[int(sequence.tasks[first])]
        yield ReadableDocument(name, task, first, length, int(learned.sum()), list(_spans(ids, learned, vocabulary)))
        first += length


def _spans(ids: np.ndarray, learned: np.ndarray, vocabulary: Vocabulary) -> Iterator[Span]:
    is_code = (ids >= vocabulary.image_start) & (ids < vocabulary.image_end)
    changes = np.flatnonzero((is_code[1:] != is_code[:-1]) | (learned[1:] != learned[:-1])) + 1
    for start, end in zip([0, *changes], [*changes, len(ids)], strict=True):
        of_span = ids[start:end]
        if is_code[start]:
            yield Span("", of_span - vocabulary.image_start, end - start, bool(learned[start]))
        else:
            text = str(vocabulary.tokenizer.decode(of_span.tolist(), skip_special_tokens=False))
            yield Span(text, None, end - start, bool(learned[start]))
