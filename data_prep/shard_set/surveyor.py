"""The survey of every input, which the plan needs: its rows, counted by all parts and all their processes at once.

    part 0: inputs 0, 1, 2, ...   part 1 of 4: inputs n/4, ...    each skips what another counts or has counted

What is found lies in OUTPUT/.partial/rows-NNNNNN.json from the moment it is known, so neither a kill nor a new start
counts an input twice. (One process that reads the headers of all tars takes 3 hours for a hundred million samples.)
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

from data_prep.child_process import follow_parent
from data_prep.settings import TokenizeSettings
from data_prep.shard_set.folder import SetFolder
from data_prep.shard_set.plan import Part
from data_prep.shard_set.writer import PARTIAL, to_json
from data_prep.source import Source, Survey
from data_prep.sources import open_source

ALONE_SECONDS = 2.0  # after which processes are started: small sets are counted before one is there
PAUSE = 0.2  # seconds between looks at what other parts have counted
CLAIMED = 4  # inputs for each process at a time

_source: Source | None = None  # of a process of the pool


class Surveyor:
    """Works for one part. identity: the source's part of the recipe: surveys of another source are not taken."""

    def __init__(
        self,
        t: TokenizeSettings,
        seed: int,
        source: Source,
        identity: dict[str, Any],
        folder: SetFolder,
        part: Part,
        workers: int,
    ) -> None:
        self.t, self.seed, self.source, self.folder, self.part, self.workers = t, seed, source, folder, part, workers
        self.digest = hashlib.sha256(to_json(identity)).hexdigest()
        self.names = source.inputs()
        self._found: dict[int, Survey] = {}

    def survey(self) -> dict[str, Survey]:
        """Of every input by name, in order. Inside `folder.opened()`. Raises what Source.survey raises."""
        first = len(self.names) * self.part.number // self.part.count
        order = [*range(first, len(self.names)), *range(first)]
        found = self._found
        with ExitStack() as stack:
            surveyed = self._surveying(stack)
            while len(found) < len(self.names):
                found.update(self._known(found.keys()))
                mine = self._claim(number for number in order if number not in found)
                found.update(self._known(found.keys()))  # somebody may have come first, and ended since
                for number, result in surveyed([number for number in mine if number not in found]):
                    found[number] = result
                    self._write(number, result)
                if not mine and len(found) < len(self.names):
                    time.sleep(PAUSE)
        return {name: found[number] for number, name in enumerate(self.names)}

    def _surveying(self, stack: ExitStack) -> Callable[[list[int]], Iterator[tuple[int, Survey]]]:
        """Surveys inputs: (input, survey) as they are known; here at first, then in processes."""
        started, pool = time.monotonic(), None

        def surveyed(numbers: list[int]) -> Iterator[tuple[int, Survey]]:
            nonlocal pool
            while numbers and pool is None:
                number, *numbers = numbers
                yield number, self.source.survey(self.names[number])
                if self.workers > 1 and numbers and time.monotonic() - started > ALONE_SECONDS:
                    pool = stack.enter_context(
                        ProcessPoolExecutor(
                            self.workers,
                            multiprocessing.get_context("spawn"),
                            _start_worker,
                            (self.t, self.seed),
                        )
                    )
            if pool is not None:
                yield from zip(numbers, pool.map(_survey, [self.names[n] for n in numbers]), strict=True)

        return surveyed

    def _claim(self, numbers: Iterator[int]) -> list[int]:
        claimed: list[int] = []
        for number in numbers:
            if len(claimed) == CLAIMED * max(1, self.workers):
                break
            if self.folder.claim_input(number):
                claimed.append(number)
        return claimed

    def _known(self, without: Collection[int]) -> dict[int, Survey]:
        """What any part has found of this source."""
        found = {}
        for name in self.folder.place.names(PARTIAL, "rows-", ".json"):
            number = int(name.removeprefix("rows-").removesuffix(".json"))
            if number in without:
                continue
            try:
                told = json.loads(self.folder.place.file(f"{PARTIAL}/{name}").read_text("utf-8"))
            except (ValueError, FileNotFoundError):  # of a power cut; the set was completed meanwhile
                continue
            if told["source"] == self.digest:
                found[number] = Survey(told["rows"], Counter(told["omitted"]), told["damage"])
        return found

    def _write(self, number: int, found: Survey) -> None:
        if self.part.count > 1 or len(self.names) > 1:
            content = to_json({"source": self.digest, **asdict(found)})
            self.folder.place.write_fast(f"{PARTIAL}/rows-{number:06d}.json", content)


def _start_worker(t: TokenizeSettings, seed: int) -> None:
    global _source
    follow_parent()
    _source = open_source(t, seed)


def _survey(name: str) -> Survey:
    assert _source is not None
    return _source.survey(name)
