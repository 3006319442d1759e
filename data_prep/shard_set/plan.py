"""The plan of a shard set: what all parts of a job have agreed on, wherever and whenever they run.

Row n of the source goes into shard n // shard_size, whatever the number of parts. The part that starts first makes the
plan and writes it to OUTPUT/.partial/plan.json; a finished set has its content in index.json.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any

from data_prep.source import Source, SourceRow
from liquid_train.errors import UserError


@dataclass(frozen=True)
class SetPlan:
    """What a set is made of, by name as plan.json and index.json have it: enough to complete a set without its source
    and its VQ.

    recipe: what determines the set. inputs: (name, rows) in order. encoder: what else codes can depend on. omitted:
    how many rows the source itself leaves out, by reason. encoder and the three VQ fields are None for texts. max_bad:
    the allowed share of unusable rows, which does not make it another set.
    """

    recipe: dict[str, Any]
    inputs: list[list[Any]]
    encoder: dict[str, Any] | None
    omitted: dict[str, int]
    vq_fingerprint: str | None = None
    codebook_size: int | None = None
    downsampling: int | None = None
    max_code: int | None = None  # in place of these, where a set was filtered whose VQ is unknown
    max_bad: float | None = field(default=None, compare=False)  # None: read from an index, which does not record it

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> SetPlan | None:
        """The plan in a plan.json or an index.json; None where it holds none."""
        if not {"recipe", "inputs", "encoder", "omitted"} <= value.keys():
            return None
        return cls(**{key: value[key] for key in cls.__dataclass_fields__ if key in value})

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def for_index(self) -> dict[str, Any]:
        """The plan's share of index.json: a set of texts names no VQ, and what was allowed is not part of a set."""
        of_vq = ("vq_fingerprint", "codebook_size", "downsampling", "max_code")
        return {
            key: value
            for key, value in asdict(self).items()
            if key != "max_bad" and not (key in of_vq and value is None)
        }

    @cached_property
    def digest(self) -> str:
        """Tells this plan from another of the same folder."""
        compared = {**self.to_json(), "max_bad": None}
        return hashlib.sha256(json.dumps(compared, sort_keys=True).encode()).hexdigest()[:16]

    def differences(self, other: SetPlan) -> list[str]:
        """Names of what `other` has otherwise, as in plan.json, with both values: "recipe.shard_size (8, 16)"."""
        a, b = flat_keys(self.to_json()), flat_keys(other.to_json())
        # what lies next to the inputs and is not read makes no other set
        free = {key for key in a.keys() | b.keys() if key == "max_bad" or key.startswith("omitted.")}
        keys = sorted(key for key in (a.keys() | b.keys()) - free if a.get(key) != b.get(key))
        return [f"{key} ({_abridged(a.get(key))}, {_abridged(b.get(key))})" for key in keys]

    @property
    def rows(self) -> int:
        return sum(rows for _, rows in self.inputs)

    @property
    def shard_size(self) -> int:
        return int(self.recipe["shard_size"])

    @property
    def shards(self) -> int:
        return math.ceil(self.rows / self.shard_size)

    def rows_of(self, shard: int) -> int:
        return min(self.shard_size, self.rows - shard * self.shard_size)

    def rows_in(self, shard: int) -> range:
        """Numbers of the rows of a shard."""
        first = shard * self.shard_size
        return range(first, first + self.rows_of(shard))

    def read_rows(self, source: Source, rows: Iterable[int]) -> Iterator[tuple[int, SourceRow]]:
        """(row, item) of ascending rows; an input is gone through once. Raises UserError where it has become
        shorter."""
        wanted = iter(rows)
        row = next(wanted, None)
        start = 0
        for name, count in self.inputs:
            stream: Iterator[SourceRow] | None = None
            at = start
            while row is not None and row < start + count:
                if stream is None or (row != at and source.seeks):
                    stream, at = source.read(name, row - start), row
                item = next(islice(stream, row - at, None), None)
                if item is None:
                    raise UserError(f"{name} has fewer rows than when the set was made")
                yield row, item
                at, row = row + 1, next(wanted, None)
            start += count

    def read(self, source: Source, shard: int) -> Iterator[SourceRow]:
        """The rows of one shard. Raises UserError when the source has fewer rows than were counted."""
        wanted = self.rows_of(shard)
        for row in islice(self._from(source, shard * self.shard_size), wanted):
            wanted -= 1
            yield row
        if wanted:
            raise UserError(
                f"the source has fewer rows than when its plan was made ({wanted} missing in shard {shard}): "
                "do not change the inputs while they are tokenized, or begin again with tokenize.overwrite=true"
            )

    def _from(self, source: Source, row: int) -> Iterator[SourceRow]:
        """All rows from number `row` on."""
        for name, rows in self.inputs:
            if row < rows:
                yield from islice(source.read(name, row), rows - row)
            row = max(0, row - rows)


def flat_keys(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested objects as one: {"recipe": {"shard_size": 8}} -> {"recipe.shard_size": 8}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(flat_keys(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return flat


def _abridged(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 60 else text[:12] + "..."  # a digest, or a long list


@dataclass(frozen=True)
class Part:
    """Part `number` of `count`, which makes a contiguous range of the shards."""

    number: int
    count: int

    def shards(self, plan: SetPlan) -> range:
        return range(plan.shards * self.number // self.count, plan.shards * (self.number + 1) // self.count)

    def __str__(self) -> str:
        return f"part {self.number}/{self.count}"


def parse_part(text: str | None) -> Part:
    """tokenize.part "I/N" with I from 0; without it the rank of torchrun, else everything. Raises UserError."""
    if text is None:
        return Part(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
    number, slash, count = text.partition("/")
    if not (slash and number.isdigit() and count.isdigit() and int(number) < int(count)):
        raise UserError(
            f"tokenize.part={text}: must be I/N with I from 0 to N-1, for example 0/4 (Slurm array: "
            "$SLURM_ARRAY_TASK_ID/4)"
        )
    return Part(int(number), int(count))
