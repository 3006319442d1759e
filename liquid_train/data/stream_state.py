"""Where a canonical stream stands: small, exact, plain JSON. Checkpoints hold one of each stream."""

from __future__ import annotations

from typing import TypedDict

# Of the order that positions count in; those of another version mean nothing here. 2: windows are emitted in a random
# order, documents of one sample apart, streams out of phase.
ORDER_VERSION = 2


class MixtureState(TypedDict):
    """How far a stream has read; everything by source."""

    drawn: dict[str, int]  # documents
    tokens: dict[str, int]
    positions: dict[str, list[int]]  # [item ordinal, offset in the item]


class DocumentName(TypedDict):
    """What is needed to build a document again."""

    source: str
    ordinal: int  # of the source's item in the stream
    offset: int  # of the document in the item
    start: int  # its first token: above 0 for the rest of a text that was split


class StreamState(TypedDict):
    """A position between two packed sequences (packing.py)."""

    window: int  # its number
    emitted: int  # sequences of the window that were emitted
    mixture: MixtureState  # at the start of the window
    carry: list[DocumentName]  # documents that did not fit the window before
