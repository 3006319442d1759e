"""What a stream is dealt: items, contiguous ranges of a source's samples, and the order of the documents in one.

    samples of an item --round 0: the first document of each, permuted--> round 1: the second of each, permuted--> ...

So the questions of one image are a whole pass over the item apart. A document's place is round * samples + its place in
the round's permutation: the item can be entered at any place, and a sample is decoded when its first place is reached.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from liquid_train.data.shard_format import Sample
from liquid_train.data.shards import SampleRange

MOST_SAMPLES = 256  # of an item: a read is then worth its latency, and a stream holds one item of each source

Plan = tuple[Sample, dict[str, Any]]  # a sample, and the fields of one of the documents that are made of it


def item_count(samples: int, streams: int) -> int:
    """Into how many items a source is cut: as many for every stream, none of more than MOST_SAMPLES samples; a source
    with fewer samples than streams, into its samples."""
    return min(samples, streams * -(-samples // (MOST_SAMPLES * streams)))


def item_range(samples: int, items: int, item: int) -> range:
    """Numbers of the samples of an item; sizes differ by at most 1."""
    return range(samples * item // items, samples * (item + 1) // items)


class Item:
    """The documents of a range of samples in one epoch.

    documents(sample): the fields of each of its documents; of None, a damaged sample: none. order(round): the
    permutation of the samples in a round.
    """

    def __init__(
        self,
        samples: SampleRange,
        documents: Callable[[Sample | None], list[dict[str, Any]]],
        order: Callable[[int], np.ndarray],
    ) -> None:
        self.samples = samples
        self._documents, self._order = documents, order
        self._planned: dict[int, list[dict[str, Any]]] = {}  # by sample
        self._orders: dict[int, np.ndarray] = {}  # by round

    def next(self, place: int) -> int | None:
        """The place of the first document at or after `place`; None where there is none."""
        while place < len(self.samples) or place % len(self.samples) or place // len(self.samples) < self._rounds():
            if place // len(self.samples) < len(self._plans(self.sample_at(place))):
                return place
            place += 1
        return None

    def places(self) -> Iterator[int]:
        """The places of all documents, in order."""
        place = self.next(0)
        while place is not None:
            yield place
            place = self.next(place + 1)

    def plan(self, place: int) -> Plan:
        """The document at a place that `next` returned."""
        i = self.sample_at(place)
        sample = self.samples[i]
        assert sample is not None
        return sample, self._plans(i)[place // len(self.samples)]

    def sample_at(self, place: int) -> int:
        """Which of the item's samples has the document at a place."""
        turn, n = divmod(place, len(self.samples))
        if turn not in self._orders:
            self._orders[turn] = self._order(turn)
        return int(self._orders[turn][n])

    def _plans(self, i: int) -> list[dict[str, Any]]:
        if i not in self._planned:
            self._planned[i] = self._documents(self.samples[i])
        return self._planned[i]

    def _rounds(self) -> int:
        return max(len(self._plans(i)) for i in range(len(self.samples)))
