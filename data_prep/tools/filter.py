"""`liquid data filter`: a subset of a set, without encoding anything again.

    SET -> what KEY.json says -> --where -> --exclude -> --near-duplicates -> which samples stay -> SET again -> OUTPUT

The files of the samples that stay are copied byte for byte into new tars. OUTPUT is written as `liquid tokenize` writes
a set: it exists once its index.json does, a killed command goes on after its last finished tar, and its recipe says
what it was made of and how.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.shard_set.folder import SetFolder
from data_prep.shard_set.index import code_counts, complete_set, counted
from data_prep.shard_set.maker import progress
from data_prep.shard_set.plan import SetPlan
from data_prep.shard_set.writer import ShardWriter, to_json
from data_prep.tools.limits import Limits
from data_prep.tools.sample_hashes import SampleHashes, alike_to, alike_within, hashes_of
from data_prep.tools.set_reader import SetReader
from data_prep.tools.where import Subject, Where, parse_where
from liquid_train.data.sample_table import pack_rows
from liquid_train.data.shard_format import DamagedSample, decode_sample
from liquid_train.errors import UserError
from liquid_train.files import check_file

NAMES_SEEN = 1000  # samples whose fields an error message can name


@dataclass(frozen=True)
class FilterRequest:
    """The options of `liquid data filter`. output: a folder, or a URL of an object store; None: nothing is written.
    listing: a file for all that is left out. max_bad: the share of damaged samples past which it ends."""

    output: str | None = None
    where: str | None = None
    near_duplicates: bool = False
    exclude: tuple[Path, ...] = ()
    limits: Limits = field(default_factory=Limits)
    listing: Path | None = None
    shard_size: int | None = None
    max_bad: float = 0.05


class Selection:
    """Which samples of a set stay, and why the others do not.

    kept bool [n]; reason int16 [n], places in `reasons`; like int64 [n]: the sample that one is alike to, else -1.
    """

    def __init__(self, samples: int) -> None:
        self.kept = np.ones(samples, bool)
        self.reason = np.zeros(samples, np.int16)
        self.like = np.full(samples, -1)
        self.reasons: list[str] = []

    def leave_out(self, numbers: np.ndarray | int, reason: str, like: np.ndarray | int = -1) -> None:
        if reason not in self.reasons:
            self.reasons.append(reason)
        self.kept[numbers], self.reason[numbers], self.like[numbers] = False, self.reasons.index(reason), like

    @property
    def rows(self) -> np.ndarray:
        """Numbers of the samples that stay, ascending."""
        return np.flatnonzero(self.kept)

    def counts(self) -> dict[str, int]:
        found = np.bincount(self.reason[~self.kept], minlength=len(self.reasons))
        return {reason: int(n) for reason, n in zip(self.reasons, found, strict=True) if n}


def filter_set(path: Path, request: FilterRequest) -> None:
    """Write the samples of a set that pass, or only count them. Raises UserError for a request that cannot be followed,
    for sets that cannot be read or compared, and where nothing is left."""
    if not (request.where is not None or request.near_duplicates or request.exclude):
        raise UserError(f"{path}: nothing to filter by; give --where EXPR, --near-duplicates or --exclude SET")
    reader, excluded = SetReader(path), [SetReader(other) for other in request.exclude]
    refuse_overlaps(path, request)
    where = parse_where(request.where) if request.where is not None else None
    recipe = make_recipe(reader, request, where, excluded)
    folder = None
    if request.output is not None:
        folder = SetFolder(request.output)
        if folder.foreign_files() or (folder.recipe is not None and folder.recipe != recipe):
            raise UserError(f"--output {request.output}: holds another set; give another folder, or remove that one")
        if folder.is_complete():
            print(f"{request.output}: complete already, made of the same set in the same way; nothing to do")
            return
        folder.place.check(f"--output {request.output}")
    if request.listing is not None:
        check_file(request.listing, f"--list {request.listing}")
    selection = select(reader, request, where, excluded)
    counts = selection.counts()
    if request.listing is not None:
        write_list(request.listing, reader, selection)
    if folder is None:
        print(f"{path}: {len(selection.rows):,} of {reader.samples:,} samples stay; nothing was written")
    elif not selection.kept.any():
        raise UserError(f"{path}: no sample is left of {reader.samples:,} ({counted(counts)}); nothing was written")
    else:
        write_set(folder, make_plan(reader, recipe, selection), reader, selection)
        print(f"{request.output}: {len(selection.rows):,} of {reader.samples:,} samples")
    print(f"  left out: {counted(counts)}")


def refuse_overlaps(path: Path, request: FilterRequest) -> None:
    """Raise UserError where the output lies in a set that is read, or the other way round, and for a set twice."""
    places = [path, *request.exclude]
    for other in request.exclude:
        if os.path.samefile(other, path):
            raise UserError(f"--exclude {other}: the set itself, of which nothing would be left; name another set")
    if request.output is None or "://" in request.output:
        return
    output = Path(request.output)
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output}: a file; give a folder")
    for place in places:
        a, b = output.resolve(), place.resolve()
        if a == b or a in b.parents or b in a.parents:
            raise UserError(f"--output {output}: overlaps with {place}, which is read; give a folder of its own")


def make_recipe(
    reader: SetReader, request: FilterRequest, where: Where | None, excluded: list[SetReader]
) -> dict[str, Any]:
    """The recipe of the set with one more step of `filter`: what it was made of and how."""
    old = reader.index.get("recipe") or {"source": {"name": reader.name}}
    step: dict[str, Any] = {"of": {"name": reader.name, "samples": reader.samples, "sha256": reader.digest}}
    if where is not None:
        step |= {"where": where.text, "files": where.files}
    if excluded:
        step["exclude"] = [{"name": other.name, "samples": other.samples, "sha256": other.digest} for other in excluded]
    if request.near_duplicates:
        step["near_duplicates"] = True
    if excluded or request.near_duplicates:
        step |= request.limits.recipe()
    largest = max((entry["nsamples"] for entry in reader.index["shardlist"]), default=1)
    size = request.shard_size or old.get("shard_size") or max(1, largest)
    return {**old, "shard_size": size, "filter": [*old.get("filter", []), step]}


def make_plan(reader: SetReader, recipe: dict[str, Any], selection: Selection) -> SetPlan:
    index = reader.index
    of_vq = {key: index.get(key) for key in ("vq_fingerprint", "codebook_size", "downsampling", "max_code")}
    inputs = [[reader.name, len(selection.rows)]]
    return SetPlan(recipe, inputs, index.get("encoder"), selection.counts(), **of_vq)


def select(reader: SetReader, request: FilterRequest, where: Where | None, excluded: list[SetReader]) -> Selection:
    """Raises UserError past max_bad, and for a field that no sample has."""
    selection = Selection(reader.samples)
    compare = bool(excluded) or request.near_duplicates
    # other sets first: the smaller ones, of which it may turn out that they have no hashes
    others = [hashes_of(other, request.limits) for other in excluded]
    collected = SampleHashes(reader, request.limits) if compare else None
    names: set[str] = set()
    with progress(f"reading {reader.path.name}", reader.samples, sys.stdout.isatty()) as advance:
        for stored in reader.read():
            advance(1)
            try:
                if stored.files is None or stored.key is None:
                    raise DamagedSample("damaged tar")
                sample = decode_sample(stored.key, stored.files, reader.codebook_size)
            except DamagedSample as error:
                selection.leave_out(stored.number, f"damaged: {error}")
                continue
            if where is not None:
                names |= sample["info"].keys() if stored.number < NAMES_SEEN else set()
                if reason := where.reason(Subject(sample, stored.number, stored.url)):
                    selection.leave_out(stored.number, reason)
                    continue
            if collected is not None:
                collected.add(stored.number, sample["info"], "codes" in sample)
    _check_damage(reader, selection, request.max_bad)
    if where is not None:
        where.refuse_unknown(names)
    if collected is not None and selection.kept.any():
        _compare(collected, selection, request, list(zip(excluded, others, strict=True)))
    return selection


def _check_damage(reader: SetReader, selection: Selection, max_bad: float) -> None:
    damaged = {reason: n for reason, n in selection.counts().items() if reason.startswith("damaged")}
    if sum(damaged.values()) > max_bad * reader.samples:
        raise UserError(
            f"--max-bad {max_bad}: {sum(damaged.values()):,} of {reader.samples:,} samples are damaged "
            f"({counted(damaged)}); `liquid data verify {reader.path}` lists them; repair the set, or allow "
            "a larger share"
        )


def _compare(
    collected: SampleHashes, selection: Selection, request: FilterRequest, excluded: list[tuple[SetReader, Any]]
) -> None:
    hashes = collected.finish()
    if collected.without.total():
        print(f"  without a hash, so compared with nothing: {counted(collected.without)}")
    for other, theirs in excluded:
        found, gone = np.zeros(other.samples, bool), 0
        for what, numbers, like, which in alike_to(hashes, request.limits, selection.rows, theirs):
            fresh = selection.kept[numbers]  # one that is alike by image and text is counted by the image
            selection.leave_out(numbers[fresh], f"like a sample of {other.name} ({what})", like[fresh])
            found |= which
            gone += int(fresh.sum())
        print(f"  {other.path}: {int(found.sum()):,} of its {other.samples:,} samples found, like {gone:,} of these")
    if request.near_duplicates:
        for what, numbers, like in alike_within(hashes, request.limits, selection.rows):
            selection.leave_out(numbers, f"near-duplicate ({what})", like)


def write_list(path: Path, reader: SetReader, selection: Selection) -> None:
    """A JSON line for every sample left out: its number and key, why, and the number of the sample that it is like."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        for stored in reader.read(np.flatnonzero(~selection.kept)):
            like = int(selection.like[stored.number])
            reason = selection.reasons[selection.reason[stored.number]]
            line: dict[str, Any] = {"number": stored.number, "key": stored.key, "reason": reason}
            file.write(to_json({**line, **({"like": like} if like >= 0 else {})}) + b"\n")


def write_set(folder: SetFolder, plan: SetPlan, reader: SetReader, selection: Selection) -> None:
    """Write what is missing of the set of `plan` and complete it."""
    rows, size = selection.rows, plan.shard_size
    with folder.opened():
        with folder.planning():
            folder.begin(plan)
        folder.claim(range(plan.shards))
        done = folder.finished(range(plan.shards))
        with progress(str(folder), len(rows), sys.stdout.isatty()) as advance:
            for number in range(plan.shards):
                wanted = rows[number * size : (number + 1) * size]
                if number not in done:
                    _write_shard(folder, number, reader, wanted)
                advance(len(wanted))
        with folder.planning():
            complete_set(folder, plan, max_bad=0.0)


def _write_shard(folder: SetFolder, number: int, reader: SetReader, wanted: np.ndarray) -> None:
    """Copy these samples into one tar."""
    counts = np.zeros(reader.codebook_size or 0, np.int64)
    writer = ShardWriter(folder.partial.parent, number)
    try:
        for stored in reader.read(wanted):
            try:
                sample = decode_sample(stored.key or "", stored.files or {}, reader.codebook_size)
            except DamagedSample as error:
                raise UserError(
                    f"{reader.path / stored.url}: changed while it was read; run the command again"
                ) from error
            assert stored.files is not None
            writer.copy(sample, stored.files)
            if "codes" in sample and len(counts):
                counts += code_counts(sample["codes"].astype(np.int64), len(counts))
    except BaseException:
        writer.abort()
        raise
    codes, own = counts if len(counts) else None, pack_rows(writer.rows)
    folder.add({"entry": writer.close(), "left_out": [], "codes": codes, "rows": own}, writer.staged)
