"""Finds samples that are alike by the hashes in their KEY.json, among all of a set and between two sets.

Two hashes that differ in few places agree entirely in some part of themselves. For every part in turn the samples are
sorted by it, those with an equal part are compared in full, and nothing else ever is:

    image   64 bits in blocks: of d + k blocks at least k are equal where at most d bits differ (all k of them in turn);
            so nothing is missed. Then the colors are compared, too.
    text    64 bytes in 16 bands of 4: at a similarity of 0.8 one pair in 5,000 agrees in no band, at 0.7 one in 80

Memory is about 130 bytes a sample, whatever is alike to whatever: pairs are used as they are found, and not kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import Protocol

import numpy as np

from data_prep.encode.minhash import SIZE, similarity
from data_prep.encode.perceptual_hash import BITS, COLORS

BAND = 4  # bytes
SLICE = 2**18  # pairs that are compared at once
SORT_COST = 8  # sorting a sample costs as much as comparing so many pairs
MAX_AGREEING = 5  # blocks: of more, there are too many choices
COLOR_BYTES = 32  # COLORS and padding

Rows = np.ndarray  # numbers of samples, int64, ascending
Pairs = Iterator[tuple[np.ndarray, np.ndarray]]


class Hashes:
    """What is compared of n samples. bits uint64 [n], colors uint8 [n, 32], texts uint8 [n, 64]; has_image and has_text
    bool [n] tell who has any."""

    def __init__(self, samples: int) -> None:
        self.bits = np.zeros(samples, np.uint64)
        self.colors = np.zeros((samples, COLOR_BYTES), np.uint8)
        self.texts = np.zeros((samples, SIZE), np.uint8)
        self.has_image = np.zeros(samples, bool)
        self.has_text = np.zeros(samples, bool)

    def set_image(self, number: int, bits: int, colors: np.ndarray) -> None:
        self.bits[number], self.colors[number, :COLORS], self.has_image[number] = bits, colors, True

    def set_text(self, number: int, signature: np.ndarray) -> None:
        self.texts[number], self.has_text[number] = signature, True


class Likeness(Protocol):
    """What makes two samples alike."""

    def usable(self, hashes: Hashes) -> np.ndarray:
        """Which samples have what is compared: bool [n]."""
        ...

    def tables(self, hashes: Hashes, rows: Rows, others: int) -> Iterator[Callable[[Hashes, Rows], np.ndarray]]:
        """Functions that give a key for every row: samples that are alike have an equal key by at least one of them.
        others: with how many samples the rows are compared."""
        ...

    def outline(self, hashes: Hashes, rows: Rows) -> np.ndarray:
        """What can be compared at once, uint64 [len(rows)]."""
        ...

    def may_be_alike(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """By the outlines of as many pairs: False where a pair is surely not alike."""
        ...

    def alike(self, a: Hashes, i: Rows, b: Hashes, j: Rows) -> np.ndarray:
        """Whether the samples i of a are alike to the samples j of b, one by one: bool [len(i)]."""
        ...

    def content(self, hashes: Hashes, rows: Rows) -> np.ndarray:
        """Everything that is compared, uint64 [len(rows), columns]: where it is equal, samples are alike to the same
        others."""
        ...


@dataclass(frozen=True)
class ImageLikeness:
    """distance: of the 64 bits so many may differ. color: each of the 27 mean values, from 0 to 255, may differ by so
    much."""

    distance: int
    color: int

    def usable(self, hashes: Hashes) -> np.ndarray:
        return hashes.has_image

    def tables(self, hashes: Hashes, rows: Rows, others: int) -> Iterator[Callable[[Hashes, Rows], np.ndarray]]:
        agreeing = self._agreeing(len(rows), others)
        edges = np.linspace(0, BITS, self.distance + agreeing + 1).astype(int)
        blocks = [((1 << int(b)) - 1) ^ ((1 << int(a)) - 1) for a, b in zip(edges, edges[1:], strict=False)]
        for chosen in combinations(blocks, agreeing):
            mask = np.uint64(sum(chosen))
            yield lambda hashes, rows, mask=mask: hashes.bits[rows] & mask  # type: ignore[misc]

    def _agreeing(self, samples: int, others: int) -> int:
        """How many equal blocks to ask for: with few, many samples agree by chance; with many, there are many ways."""

        def cost(agreeing: int) -> float:
            blocks = self.distance + agreeing
            by_chance = 2.0 ** (BITS * agreeing / blocks)
            return comb(blocks, agreeing) * (SORT_COST * (samples + others) + samples * others / by_chance)

        return min(range(1, MAX_AGREEING + 1), key=cost)

    def outline(self, hashes: Hashes, rows: Rows) -> np.ndarray:
        return hashes.bits[rows]

    def may_be_alike(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.bitwise_count(a ^ b) <= self.distance

    def alike(self, a: Hashes, i: Rows, b: Hashes, j: Rows) -> np.ndarray:
        near = self.may_be_alike(a.bits[i], b.bits[j])
        left, right = a.colors[i[near]].astype(np.int16), b.colors[j[near]].astype(np.int16)
        near[near] = (np.abs(left - right) <= self.color).all(axis=1)
        return near

    def content(self, hashes: Hashes, rows: Rows) -> np.ndarray:
        return np.column_stack([hashes.bits[rows], hashes.colors[rows].view(np.uint64)])


@dataclass(frozen=True)
class TextLikeness:
    """similarity: the share of their pieces that two texts have in common."""

    similarity: float

    def usable(self, hashes: Hashes) -> np.ndarray:
        return hashes.has_text

    def tables(self, hashes: Hashes, rows: Rows, others: int) -> Iterator[Callable[[Hashes, Rows], np.ndarray]]:
        for first in range(0, SIZE, BAND):
            yield (
                lambda hashes, rows, first=first: np.ascontiguousarray(  # type: ignore[misc]
                    hashes.texts[rows, first : first + BAND]
                ).view(np.uint32)[:, 0]
            )

    def outline(self, hashes: Hashes, rows: Rows) -> np.ndarray:
        return hashes.texts[rows].view(np.uint64)[:, 0]

    def may_be_alike(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.ones(len(a), bool)  # eight bytes of 64 tell too little

    def alike(self, a: Hashes, i: Rows, b: Hashes, j: Rows) -> np.ndarray:
        return similarity(a.texts[i], b.texts[j]) >= self.similarity

    def content(self, hashes: Hashes, rows: Rows) -> np.ndarray:
        return hashes.texts[rows].view(np.uint64)


@dataclass(frozen=True)
class BothLikeness:
    """Image and text must both be alike: the same image with another caption stays."""

    image: ImageLikeness
    text: TextLikeness

    def usable(self, hashes: Hashes) -> np.ndarray:
        return hashes.has_image & hashes.has_text

    def tables(self, hashes: Hashes, rows: Rows, others: int) -> Iterator[Callable[[Hashes, Rows], np.ndarray]]:
        return self.image.tables(hashes, rows, others)

    def outline(self, hashes: Hashes, rows: Rows) -> np.ndarray:
        return self.image.outline(hashes, rows)

    def may_be_alike(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return self.image.may_be_alike(a, b)

    def alike(self, a: Hashes, i: Rows, b: Hashes, j: Rows) -> np.ndarray:
        near = self.image.alike(a, i, b, j)
        near[near] = self.text.alike(a, i[near], b, j[near])
        return near

    def content(self, hashes: Hashes, rows: Rows) -> np.ndarray:
        return np.concatenate([self.image.content(hashes, rows), self.text.content(hashes, rows)], axis=1)


def near_duplicates(likeness: Likeness, hashes: Hashes, rows: Rows) -> np.ndarray:
    """For each of `rows`, the number of the kept sample that it is alike to; -1 where it is kept itself.

    In order, a sample is kept unless it is alike to one that was kept before it. So the first of its kind stays, and in
    a chain of samples, each alike to the next, not all but the first go.
    """
    representative = _first_of_equals(likeness, hashes, rows)
    first = np.full(len(rows), -1)  # places in `rows`
    undecided = representative == np.arange(len(rows))
    while undecided.any():
        asked = np.flatnonzero(undecided)
        blocked, involved = np.zeros(len(rows), bool), np.zeros(len(rows), bool)
        for earlier, later in _pairs_within(likeness, hashes, rows[asked]):
            blocked[asked[later]] = True
            involved[asked[earlier]] = involved[asked[later]] = True
        kept = undecided & ~blocked  # nothing before them is alike and still undecided
        asked = np.flatnonzero(involved)
        for earlier, later in _pairs_within(likeness, hashes, rows[asked]):
            by_kept = kept[asked[earlier]]
            _take_least(first, asked[later[by_kept]], asked[earlier[by_kept]])
        undecided &= ~kept & (first < 0)
    repeated = representative != np.arange(len(rows))
    its_first = first[representative[repeated]]
    first[repeated] = np.where(its_first < 0, representative[repeated], its_first)
    return np.where(first < 0, -1, rows[first])


def matches(likeness: Likeness, a: Hashes, rows: Rows, b: Hashes, others: Rows) -> tuple[np.ndarray, np.ndarray]:
    """For each of `rows` in `a` the least of `others` in `b` that it is alike to, -1 where there is none; and which of
    `others` are alike to any: bool."""
    first, found = np.full(len(rows), -1), np.zeros(len(others), bool)
    mine, theirs = likeness.outline(a, rows), likeness.outline(b, others)
    for key in likeness.tables(a, rows, len(others)):
        order, ordered = _sorted(key(b, others))
        keys, outlines = _folded(key(a, rows)), theirs[order]
        for place, at in _spans(np.searchsorted(ordered, keys), np.searchsorted(ordered, keys, "right")):
            possible = likeness.may_be_alike(mine[place], outlines[at])
            place, other = place[possible], order[at[possible]]
            near = likeness.alike(a, rows[place], b, others[other])
            _take_least(first, place[near], other[near])
            found[other[near]] = True
    return np.where(first < 0, -1, others[first] if len(others) else -1), found


def _pairs_within(likeness: Likeness, hashes: Hashes, rows: Rows) -> Pairs:
    """(earlier, later) places in `rows` of samples that are alike; a pair may come more than once."""
    outlines, places = likeness.outline(hashes, rows), np.arange(len(rows))
    for key in likeness.tables(hashes, rows, len(rows) // 2):
        order, ordered = _sorted(key(hashes, rows))
        sorted_outlines = outlines[order]
        starts = np.maximum.accumulate(np.where(np.append(True, ordered[1:] != ordered[:-1])[: len(rows)], places, 0))
        for later, earlier in _spans(starts, places):
            possible = likeness.may_be_alike(sorted_outlines[later], sorted_outlines[earlier])
            i, j = order[earlier[possible]], order[later[possible]]
            near = likeness.alike(hashes, rows[i], hashes, rows[j])
            yield i[near], j[near]


def _folded(keys: np.ndarray) -> np.ndarray:
    """Keys in 32 bits, uint64: equal ones stay equal, and few others become so."""
    return (keys.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)


def _sorted(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(order, folded keys in that order), equal ones in the order of the samples. Sorting keys and places as one number
    is several times as fast as argsort."""
    packed = (_folded(keys) << np.uint64(32)) | np.arange(len(keys), dtype=np.uint64)
    packed.sort()
    return (packed & np.uint64(0xFFFFFFFF)).astype(np.int64), packed >> np.uint64(32)


def _spans(starts: np.ndarray, ends: np.ndarray) -> Pairs:
    """(n, place) for all places from starts[n] to ends[n] - 1, at most SLICE at once."""
    for begin in range(0, len(starts), SLICE):
        rows = begin + np.flatnonzero(starts[begin : begin + SLICE] < ends[begin : begin + SLICE])
        places = starts[rows]
        while len(rows):
            yield rows, places
            places = places + 1
            more = places < ends[rows]
            rows, places = rows[more], places[more]


def _first_of_equals(likeness: Likeness, hashes: Hashes, rows: Rows) -> np.ndarray:
    """For each row the place of the first with the very same hashes: thousands of copies of one image are then compared
    once."""
    digest = np.zeros(len(rows), np.uint64)
    for begin in range(0, len(rows), SLICE):
        content = likeness.content(hashes, rows[begin : begin + SLICE])
        for column in content.T:
            part = (digest[begin : begin + SLICE] ^ column) * np.uint64(0x9E3779B97F4A7C15)
            digest[begin : begin + SLICE] = part ^ (part >> np.uint64(29))
    order = np.argsort(digest, kind="stable")
    equal = np.append(False, digest[order[1:]] == digest[order[:-1]])[: len(rows)]
    at = np.flatnonzero(equal)
    for begin in range(0, len(at), SLICE):  # two digests may be equal by chance
        i, j = rows[order[at[begin : begin + SLICE] - 1]], rows[order[at[begin : begin + SLICE]]]
        equal[at[begin : begin + SLICE]] = (likeness.content(hashes, i) == likeness.content(hashes, j)).all(axis=1)
    starts = np.maximum.accumulate(np.where(equal, 0, np.arange(len(rows))))
    representative = np.empty(len(rows), np.int64)
    representative[order] = order[starts]
    return representative


def _take_least(values: np.ndarray, at: np.ndarray, candidates: np.ndarray) -> None:
    """values[at] = the least of them and of the candidates; -1 stands for none yet."""
    order = np.lexsort((candidates, at))
    at, candidates = at[order], candidates[order]
    first = np.append(True, at[1:] != at[:-1])[: len(at)]
    at, candidates = at[first], candidates[first]
    values[at] = np.where(values[at] < 0, candidates, np.minimum(values[at], candidates))
