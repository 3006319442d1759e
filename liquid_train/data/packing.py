"""Documents into sequences of exactly seq_len tokens: windows of best fit; a text may be split, an image never.

A window gathers documents for `window` sequences, places image documents first (longest first, into the fullest sequence
that still has room), then pours text into what is left, cutting it where a sequence is full. What did not fit is carried, by
name, into the next window. A stream's state is the state at its window's start and how many of its sequences were emitted.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from liquid_train.data.mixture import Document, DocumentName, Mixture, MixtureState, SourceReader
from liquid_train.data.sequences import IGNORED

SHORTEST_PIECE = 2  # a piece of one token predicts nothing


class StreamState(TypedDict):
    """window: number of the window; emitted: its sequences already given out; mixture and carry: as at the window's start."""

    window: int
    emitted: int
    mixture: MixtureState
    carry: list[DocumentName]


@dataclass(frozen=True)
class Sequence:
    """One packed sequence. Arrays are [seq_len]; `labels` is unshifted and -100 at each document's first token and in padding."""

    ids: np.ndarray
    labels: np.ndarray
    positions: np.ndarray  # restart at every document
    tasks: np.ndarray  # int8, index into config.TASKS; -1 in padding
    lengths: list[int]  # of the documents in order; the padding, if any, is the last entry
    documents: int
    padding: int

    def digest(self) -> bytes:
        """sha256 over ids, labels and positions as little-endian int64."""
        digest = hashlib.sha256()
        for array in (self.ids, self.labels, self.positions):
            digest.update(array.astype("<i8").tobytes())
        return digest.digest()


def join(documents: list[Document], seq_len: int, pad: int) -> Sequence:
    """Lay documents side by side and pad to seq_len."""
    lengths = [len(d) for d in documents]
    padding = seq_len - sum(lengths)
    assert padding >= 0, (lengths, seq_len)
    if padding:
        lengths = [*lengths, padding]
    labels = [np.concatenate([[IGNORED], d.labels[1:]]) for d in documents]
    return Sequence(
        ids=np.concatenate([*(d.ids for d in documents), np.full(padding, pad)]).astype(np.int64),
        labels=np.concatenate([*labels, np.full(padding, IGNORED)]).astype(np.int64),
        positions=np.concatenate([np.arange(n) for n in lengths]),
        tasks=np.concatenate([*(np.full(len(d), d.task) for d in documents), np.full(padding, -1)]).astype(np.int8),
        lengths=lengths,
        documents=len(documents),
        padding=padding,
    )


def best_fit(documents: list[Document], bins: int, seq_len: int) -> tuple[list[list[Document]], list[Document]]:
    """Place whole documents, longest first, each into the bin with the least room that suffices -> (bins, what did not fit)."""
    placed: list[list[Document]] = [[] for _ in range(bins)]
    room = np.full(bins, seq_len)
    left = []
    for document in sorted(documents, key=len, reverse=True):
        fits = np.flatnonzero(room >= len(document))
        if not len(fits):
            left.append(document)
            continue
        chosen = fits[np.argmin(room[fits])]
        placed[chosen].append(document)
        room[chosen] -= len(document)
    return placed, left


def pour(texts: list[Document], placed: list[list[Document]], seq_len: int) -> list[Document]:
    """Fill every bin's room with texts in order, splitting where a bin is full -> what is left."""
    queue = list(texts)
    for bin_ in placed:
        room = seq_len - sum(len(d) for d in bin_)
        while queue and room >= SHORTEST_PIECE:
            document = queue.pop(0)
            if len(document) > room:
                document, rest = document.split(room)
                queue.insert(0, rest)
            bin_.append(document)
            room -= len(document)
    return queue


class PackedStream:
    """One canonical stream: an endless row of packed sequences, resumable between any two of them."""

    def __init__(self, stream: int, readers: dict[str, SourceReader], seq_len: int, window: int, pad: int, state: StreamState | None = None) -> None:
        self.seq_len, self.window_size, self.pad = seq_len, window, pad
        self.mixture = Mixture(stream, readers, state["mixture"] if state else None)
        self.window = state["window"] if state else 0
        self.emitted = state["emitted"] if state else 0
        self.carry: list[DocumentName] = list(state["carry"]) if state else []
        self._start: StreamState | None = None
        self._sequences: list[Sequence] = []
        self._next_carry: list[DocumentName] = []

    @property
    def state(self) -> StreamState:
        """State after the last sequence that `next` returned."""
        if self._start is None:
            return {"window": self.window, "emitted": self.emitted, "mixture": self.mixture.state, "carry": list(self.carry)}
        return {**self._start, "emitted": self.emitted}

    def next(self) -> Sequence:
        if self._start is None:  # new, or resumed in the middle of a window
            self._begin_window()
        while self.emitted == len(self._sequences):
            self.window, self.emitted, self.carry = self.window + 1, 0, self._next_carry
            self._begin_window()
        sequence = self._sequences[self.emitted]
        self.emitted += 1
        return sequence

    def _begin_window(self) -> None:
        self._start = {"window": self.window, "emitted": 0, "mixture": self.mixture.state, "carry": list(self.carry)}
        self._pack_window()

    def _pack_window(self) -> None:
        documents = [d for d in (self.mixture.rebuild(name) for name in self.carry) if d is not None]
        tokens = sum(len(d) for d in documents)
        while tokens < (self.window_size + 1) * self.seq_len:  # one sequence's worth more than fits, to choose from
            documents.append(self.mixture.next())
            tokens += len(documents[-1])
        whole = [d for d in documents if not d.splittable]
        texts = [d for d in documents if d.splittable]
        placed, left = best_fit(whole, self.window_size, self.seq_len)
        rest = pour(texts, placed, self.seq_len)
        self._sequences = [join(p, self.seq_len, self.pad) for p in placed]
        self._next_carry = [d.name for d in (*left, *rest)]
