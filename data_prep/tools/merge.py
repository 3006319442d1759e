"""`liquid data merge`: parts of `liquid tokenize` into one finished set.

    parts written to OUTPUT itself         -> index.json there, as the last part would have written it
    parts written to folders of their own  -> their shards in OUTPUT (a hard link, or a copy), then the same

Nothing is written before everything is known to fit: equal plans, every shard in one place, its content as recorded.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from data_prep.settings import TokenizeSettings
from data_prep.shard_set.folder import DROPPED_NAME, SetFolder
from data_prep.shard_set.index import Record, check_bad, complete_set
from data_prep.shard_set.maker import print_set_summary, progress
from data_prep.shard_set.plan import SetPlan
from data_prep.shard_set.writer import shard_name, shard_number
from liquid_train.errors import UserError
from liquid_train.files import check_folder, sha256_of, sync

MAX_BAD = "--max-bad"


@dataclass
class PartFolder:
    """A folder with finished shards: their records by number. plan: of the set they belong to."""

    folder: SetFolder
    plan: SetPlan
    records: dict[int, Record]


def merge(output: Path, folders: list[Path], max_bad: float | None = None) -> None:
    """Complete the set in `output` from the parts there and in `folders`, which stay as they are.

    max_bad: the allowed share of unusable rows; None: the largest one that a part was made with.
    Raises UserError for parts of different sets, for shards that no part or two parts have, and for damaged ones.
    """
    if output.exists() and not output.is_dir():
        raise UserError(f"OUTPUT {output}: a file; give the folder of the set")
    target = SetFolder(output)
    parts = [open_part(path) for path in folders]
    if any(path.resolve() == output.resolve() for path in folders):
        raise UserError(f"{output}: given as the output and as a part; parts that lie in the output need no naming")
    if not parts and target.plan is None:
        raise UserError(
            f"{output}: no part of a set there; name the folders of the parts, or make them: liquid tokenize "
            "tokenize.part=I/N"
        )
    if target.recipe is not None and target.plan is None:
        raise UserError(
            f"{output}: its shards have no plan, so nobody knows of which set they are; give another output"
        )
    plan = agreed_plan(target, parts)
    if target.index is not None:
        _refuse_tars([str(output / entry["url"]) for entry in target.index["shardlist"] if not target.is_intact(entry)])
        print(f"{output}: complete already, {target.index['totals']['samples']:,} samples; nothing to do")
        return
    begun = [open_part(output)] if target.plan else []
    for part in begun:  # a merge that was killed may have left a record whose tar did not follow
        part.records = {number: part.records[number] for number in part.records.keys() & target.finished_numbers()}
    check_coverage(plan, begun, parts)
    allowed = max_bad if max_bad is not None else _largest_max_bad([*begun, *parts])
    records = {number: record for part in [*begun, *parts] for number, record in part.records.items()}
    check_bad(
        sum((Counter(record["entry"]["dropped"]) for record in records.values()), Counter()),
        plan.rows,
        allowed,
        MAX_BAD,
    )
    check_folder(output, f"OUTPUT {output}", "the parts are as they were; choose another folder")
    check_content([*begun, *parts])
    try:
        _complete(target, plan, parts, allowed)
    except OSError as error:  # a full disk, above all
        raise UserError(
            f"{output}: {error}; the parts are as they were, the same command goes on from there"
        ) from error


def _largest_max_bad(parts: list[PartFolder]) -> float:
    limits = [part.plan.max_bad for part in parts if part.plan.max_bad is not None]
    return max(limits, default=TokenizeSettings.max_bad)


def open_part(path: Path) -> PartFolder:
    """The finished shards of a folder: a part, or a complete set of one shard. Raises UserError for any other
    folder."""
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; name the folders that `liquid tokenize tokenize.part=I/N` wrote to")
    folder = SetFolder(path)
    if folder.plan is None:
        raise UserError(
            f"{path}: no part of a set there (no .partial/plan.json and no index.json); name the tokenize.output of "
            "a part"
        )
    if folder.index is None:
        records = folder.recorded()
        if wrong := [number for number, record in records.items() if not {"entry", "left_out"} <= record.keys()]:
            raise UserError(
                f"{path}/.partial: records that do not say what they should: shards {ranges(wrong)}; remove them and "
                "run that part again"
            )
        return PartFolder(folder, folder.plan, records)
    records = {shard_number(record["entry"]["url"]): record for record in folder.records_of(folder.index)}
    _refuse_tars(
        [str(path / entry["url"]) for entry in folder.index["shardlist"] if shard_number(entry["url"]) not in records]
    )
    return PartFolder(folder, folder.plan, records)


def agreed_plan(target: SetFolder, parts: list[PartFolder]) -> SetPlan:
    """The plan of all of them. Raises UserError naming what differs where there are several."""
    plans = [(target.path, target.plan)] if target.plan else []
    plans += [(part.folder.path, part.plan) for part in parts]
    first, plan = plans[0]
    for path, other in plans[1:]:
        if different := plan.differences(other):
            more = f" and {len(different) - 4} more" if len(different) > 4 else ""
            raise UserError(
                f"{first} and {path} hold different sets: {', '.join(different[:4])}{more}; merge parts of one "
                "`liquid tokenize` command only"
            )
    return plan


def check_coverage(plan: SetPlan, begun: list[PartFolder], parts: list[PartFolder]) -> None:
    """Raise UserError for shards in two places or in none. What an earlier merge put into the output may be in a part
    too."""
    where: dict[int, PartFolder] = {}
    twice: dict[tuple[str, str], list[int]] = {}
    for part in [*begun, *parts]:
        for number in part.records:
            other = where.setdefault(number, part)
            merged_before = other in begun and other.records[number] == part.records[number]
            if other is not part and not merged_before:
                twice.setdefault((str(other.folder.path), str(part.folder.path)), []).append(number)
    if twice:
        found = "; ".join(f"{ranges(numbers)} in {a} and in {b}" for (a, b), numbers in twice.items())
        raise UserError(
            f"shards in two folders: {found}; name each part once, and merge parts of one tokenize.part=I/N division "
            "only"
        )
    if missing := sorted(set(range(plan.shards)) - where.keys()):
        raise UserError(
            f"{len(missing)} of {plan.shards} shards are in no part: {ranges(missing)}; "
            "name the folders of all parts, or let `liquid tokenize` make what is missing (the same command again)"
        )


def check_content(parts: list[PartFolder]) -> None:
    """Raise UserError naming the shards whose tar is not as their record says."""
    damaged = []
    with progress("checking", sum(len(part.records) for part in parts), sys.stdout.isatty()) as advance:
        for part in parts:
            for number, record in sorted(part.records.items()):
                if not part.folder.is_intact(record["entry"]):
                    damaged.append(str(part.folder.path / shard_name(number)))
                advance(1)
    _refuse_tars(damaged)


def _refuse_tars(damaged: list[str]) -> None:
    if damaged:
        more = f" and {len(damaged) - 5} more" if len(damaged) > 5 else ""
        raise UserError(
            f"{', '.join(damaged[:5])}{more}: missing or not as recorded (size, sha256); run that part's `liquid "
            "tokenize` again, which repairs it"
        )


def _complete(target: SetFolder, plan: SetPlan, parts: list[PartFolder], max_bad: float) -> None:
    with target.opened(), target.planning():
        if target.index is not None:
            raise UserError(f"{target.path}: another process completed it in the meantime")
        if target.plan is None:
            target.begin(plan)
        target.claim(range(plan.shards))
        there = target.finished_numbers()
        todo = [(part, number) for part in parts for number in sorted(part.records.keys() - there)]
        with progress(str(target.path), len(todo), sys.stdout.isatty()) as advance:
            for part, number in todo:
                _take(target, part, number)
                advance(1)
        index = complete_set(target, plan, max_bad, MAX_BAD)
    print_set_summary(str(target.path), index, None)
    if index["dropped"]:
        print(f"  {target.path / DROPPED_NAME} names what was dropped")


def _take(target: SetFolder, part: PartFolder, number: int) -> None:
    """Put one shard of a part into the target, first the tar, then its record."""
    source, staging_directory = part.folder.path / shard_name(number), target.partial / shard_name(number)
    staging_directory.unlink(missing_ok=True)
    try:
        os.link(source, staging_directory)
    except OSError:  # another disk, or a file system without links
        shutil.copyfile(source, staging_directory)
        sync(staging_directory)
        if sha256_of(staging_directory) != part.records[number]["entry"]["sha256"]:
            raise UserError(
                f"{staging_directory}: not what was copied from {source}; check the disk, then merge again"
            ) from None
    with_codes = part.folder.read_record(number) or {**part.records[number], "codes": None}  # none: a finished set's
    target.add(with_codes, staging_directory)


def ranges(numbers: list[int]) -> str:
    """Numbers in short: [0, 1, 2, 5] -> "0-2, 5"; at most ten ranges."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    texts = [str(a) if a == b else f"{a}-{b}" for a, b in found[:10]]
    return ", ".join(texts) + (f" and {len(found) - 10} more ranges" if len(found) > 10 else "")
