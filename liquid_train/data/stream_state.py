"""Where a canonical stream stands: small, exact, plain JSON. Checkpoints hold one of each stream."""

from __future__ import annotations

from typing import TypedDict


class MixtureState(TypedDict):
    """Where a stream stands. drawn, tokens: documents and their tokens per source; positions: per source [item ordinal,
    offset in the item]."""

    drawn: dict[str, int]
    tokens: dict[str, int]
    positions: dict[str, list[int]]


class DocumentName(TypedDict):
    """What is needed to build a document again; start: first token, for the rest of a text that was split."""

    source: str
    ordinal: int
    offset: int
    start: int


class StreamState(TypedDict):
    """window: number of the window; emitted: its sequences already given out; mixture and carry: as at the window's
    start."""

    window: int
    emitted: int
    mixture: MixtureState
    carry: list[DocumentName]
