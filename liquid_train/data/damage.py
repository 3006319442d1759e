"""Damaged samples, each counted once, however many processes and epochs meet it.

a ShardSet's DamageLog --new entries with each step--> rank --> all ranks: DamageCount, the same on every one
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

log = logging.getLogger(__name__)


class Damage(NamedTuple):
    """`samples` samples of the set at `path`, from number `first` on, cannot be used. where: they, in words."""

    path: str
    first: int
    samples: int
    reason: str
    where: str

    def __str__(self) -> str:
        return f"{self.where}: left out: {self.reason}"


class DamageLog:
    """What one process has found damaged in one shard set. announce: warn of the first case of each reason; without it,
    whoever puts the logs of several processes together does."""

    def __init__(self, path: str) -> None:
        self.path, self.announce = path, True
        self.entries: list[Damage] = []
        self.by_reason: Counter[str] = Counter()
        self._known: set[int] = set()

    def add(self, numbers: Sequence[int], reason: str, where: str) -> None:
        """Note consecutive samples of the set, without those that are noted already."""
        new = [number for number in numbers if number not in self._known]
        if not new:
            return
        entry = Damage(self.path, new[0], len(new), reason, where)
        log.log(logging.WARNING if self.announce and not self.by_reason[reason] else logging.DEBUG, "%s", entry)
        self._known.update(new)
        self.entries.append(entry)
        self.by_reason[reason] += len(new)


class DamageCount:
    """The damage that any process has found, by set and reason. samples: how many each set has, by its path."""

    def __init__(self, samples: dict[str, int]) -> None:
        # a byte a sample, of which the system gives memory only to the pages where damage is noted
        self._known = {path: np.zeros(count, bool) for path, count in samples.items()}
        self._counts: dict[str, Counter[str]] = {path: Counter() for path in samples}

    def add(self, found: Iterable[Damage]) -> list[Damage]:
        """Count what is new; of each set and reason, the first case ever is returned."""
        first_cases = []
        for entry in found:
            known = self._known[entry.path][entry.first : entry.first + entry.samples]
            if new := int((~known).sum()):
                counts = self._counts[entry.path]
                first_cases += [] if counts[entry.reason] else [entry]
                counts[entry.reason] += new
                known[:] = True
        return first_cases

    @property
    def total(self) -> int:
        return sum(counts.total() for counts in self._counts.values())

    def __str__(self) -> str:
        reasons = sum(self._counts.values(), Counter[str]())
        samples = sum(len(known) for known in self._known.values())
        return (
            f"{self.total:,} of {samples:,} samples are damaged ({', '.join(f'{r}: {n}' for r, n in reasons.items())})"
        )

    @property
    def share(self) -> float:
        """Of all samples of all sets."""
        return self.total / max(1, sum(len(known) for known in self._known.values()))

    def of(self, path: str) -> dict[str, int]:
        """Damaged samples of one set, by reason."""
        return dict(self._counts[path])
