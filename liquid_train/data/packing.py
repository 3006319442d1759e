"""Packs documents into sequences of exactly seq_len tokens within a window. Only texts are ever split.

A window gathers documents for `window` sequences, which placement.py puts into them and in an order: both random, keyed
by (seed, stream, window), so that any global batch has each task's share but for chance. What does not fit is carried
by name into the next window. The state of a stream is its state at the start of the window, and how many of the
window's sequences it has emitted.
A document that data.skip names is replaced by padding, so that data.skip does not move any other document.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from liquid_train.data.keyed import keyed_generator
from liquid_train.data.mixture import Document, Mixture, SourceReader
from liquid_train.data.placement import place
from liquid_train.data.sequence_pieces import IGNORED
from liquid_train.data.stream_state import DocumentName, StreamState


@dataclass(frozen=True)
class Sequence:
    """One packed sequence. Arrays are [seq_len]; `labels` is unshifted and -100 at each document's first token and in
    padding."""

    ids: np.ndarray
    labels: np.ndarray
    positions: np.ndarray  # restart at every document
    tasks: np.ndarray  # int8, what each label counts for, its place in task_names(data); -1 in padding
    lengths: list[int]  # of the documents in order; the padding, if any, is the last entry
    names: list[str]  # "source/sample key" of the documents in order
    # where each begins in its sample's document, in tokens: 0, except for the rest of a text that was split
    starts: list[int]
    padding: int

    @property
    def documents(self) -> int:
        return len(self.names)

    def digest(self) -> bytes:
        """sha256 over ids, labels and positions as little-endian int64."""
        digest = hashlib.sha256()
        for array in (self.ids, self.labels, self.positions):
            digest.update(array.astype("<i8").tobytes())
        return digest.digest()

    def sources(self) -> dict[str, tuple[int, int]]:
        """Source -> (documents that begin here, tokens), so that a document counts once however it is split."""
        found: dict[str, tuple[int, int]] = {}
        # lengths may end with that of the padding
        for name, start, length in zip(self.names, self.starts, self.lengths, strict=False):
            source = name.partition("/")[0]
            documents, tokens = found.get(source, (0, 0))
            found[source] = (documents + (start == 0), tokens + length)
        return found


def join(documents: list[Document], seq_len: int, pad: int) -> Sequence:
    """Concatenate documents and pad to seq_len."""
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
        tasks=np.concatenate([*(d.tasks for d in documents), np.full(padding, -1)]).astype(np.int8),
        lengths=lengths,
        names=[f"{d.name['source']}/{d.key}" for d in documents],
        starts=[d.name["start"] for d in documents],
        padding=padding,
    )


class PackedStream:
    """One canonical stream: a series of packed sequences that can be resumed between any two of them.

    It ends when every source is used up (SourceConfig.max_epochs); from then on `next` returns sequences of
    padding only.
    """

    def __init__(
        self,
        stream: int,
        readers: dict[str, SourceReader],
        seq_len: int,
        window: int,
        pad: int,
        state: StreamState | None = None,
    ) -> None:
        self.stream, self.seq_len, self.window_size, self.pad = stream, seq_len, window, pad
        (self.seed,) = {r.seed for r in readers.values()}
        self.mixture = Mixture(stream, readers, state["mixture"] if state else None)
        self.window = state["window"] if state else 0
        self.emitted = state["emitted"] if state else 0
        self.carry: list[DocumentName] = list(state["carry"]) if state else []
        self.buffered = 0  # documents that went into the current window
        self._start: StreamState | None = None
        self._placed: list[list[Document]] = []  # by sequence of the window, as they are emitted
        self._left: list[Document] | None = None  # the documents of `carry`; None after a resume: to be rebuilt

    @property
    def state(self) -> StreamState:
        """State after the last sequence that `next` returned."""
        if self._start is None:
            return {
                "window": self.window,
                "emitted": self.emitted,
                "mixture": self.mixture.state,
                "carry": list(self.carry),
            }
        return {**self._start, "emitted": self.emitted}

    def has_more(self) -> bool:
        """Whether `next` still has a document; packs the next window to find out."""
        if self._start is None:  # new or just resumed
            self._pack_window()
        if self._placed and self.emitted == len(self._placed):
            self.window, self.emitted = self.window + 1, 0
            self._pack_window()
        return self.emitted < len(self._placed)

    def next(self) -> Sequence:
        if not self.has_more():
            return join([], self.seq_len, self.pad)
        self.emitted += 1
        return join(self._without_skipped(self._placed[self.emitted - 1]), self.seq_len, self.pad)

    def _pack_window(self) -> None:
        self._start = {"window": self.window, "emitted": 0, "mixture": self.mixture.state, "carry": list(self.carry)}
        carried = self.mixture.rebuild(self.carry) if self._left is None else self._left
        new: list[Document] = []
        tokens = sum(len(d) for d in carried)
        # the first windows are small, so that training does not wait for full ones
        sequences = min(self.window_size, 1 << min(self.window, 30))
        while tokens < (sequences + 1) * self.seq_len:  # one sequence's worth more than fits, to have a choice
            document = self.mixture.next()
            if document is None:
                break
            new.append(document)
            tokens += len(document)
        self.buffered = len(carried) + len(new)
        generator = keyed_generator(self.seed, "window", self.stream, self.window)
        self._placed, self._left = place(carried, new, sequences, self.seq_len, generator)
        self.carry = [d.name for d in self._left]

    def _without_skipped(self, documents: list[Document]) -> list[Document]:
        kept = []
        for document in documents:
            reader = self.mixture.readers[document.name["source"]]
            if document.key in reader.skip:
                reader.dropped["named in data.skip"] += document.name["start"] == 0
            else:
                kept.append(document)
        return kept
