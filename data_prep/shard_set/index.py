"""The index.json of a finished set, put together from the records of its shards."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from data_prep.encode.crops import TOO_LONG
from data_prep.shard_set.folder import SetFolder
from data_prep.shard_set.plan import SetPlan
from liquid_train.data.shard_format import INDEX_KIND, decode_codes, group_files
from liquid_train.errors import UserError

Record = dict[str, Any]  # {"entry", "left_out", "codes"} of one shard


def code_counts(codes: np.ndarray, codebook_size: int) -> np.ndarray:
    """How often each entry of the codebook occurs: int64 [codebook_size]."""
    return np.bincount(codes.ravel(), minlength=codebook_size)


def perplexity(counts: np.ndarray) -> float:
    """exp of the entropy of the codes' distribution: how many entries are in use, weighed by how much."""
    share = counts[counts > 0] / max(1, counts.sum())
    return float(np.exp(-(share * np.log(share)).sum()))


def counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{reason}: {n:,}" for reason, n in sorted(counts.items())) or "none"


def check_bad(dropped: dict[str, int], rows: int, limit: float, flag: str = "tokenize.max_bad") -> None:
    """Raise UserError when a larger share of rows than `limit` is damaged; those left out for their aspect ratio do
    not count."""
    bad = {reason: n for reason, n in dropped.items() if not reason.startswith(TOO_LONG)}
    if sum(bad.values()) > limit * rows:
        raise UserError(
            f"{flag}={limit}: {sum(bad.values()):,} of {rows:,} rows cannot be used ({counted(bad)}); "
            "fix the source, or allow a larger share"
        )


def complete_set(
    folder: SetFolder, plan: SetPlan, records: dict[int, Record], max_bad: float, flag: str = "tokenize.max_bad"
) -> dict[str, Any]:
    """Inside `folder.planning()`, with the records of all shards: write what makes the set complete, and return its
    index.

    Raises UserError when more rows than max_bad are damaged (`flag` is what the message calls it) and when no sample
    is left.
    """
    index, left_out = make_index(folder, plan, records)
    check_bad(index["dropped"], plan.rows, max_bad, flag)
    if not index["totals"]["samples"]:
        raise UserError(
            f"tokenize.source={plan.recipe['source']['name']}: no sample is left of {plan.rows} "
            f"({counted(index['dropped'])})"
        )
    folder.complete(index, left_out)
    return index


def make_index(
    folder: SetFolder, plan: SetPlan, records: dict[int, Record]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(index.json, all rows that were left out), the same for any number of parts. Needs the records of all shards."""
    in_order = [records[number] for number in range(plan.shards)]
    totals: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    for record in in_order:
        totals.update(record["entry"]["totals"])
        dropped.update(record["entry"]["dropped"])
    index: dict[str, Any] = {
        "__kind__": INDEX_KIND,
        "wids_version": 1,
        "name": plan.recipe["source"]["name"],
        "shardlist": [record["entry"] for record in in_order],
        "no_caption": totals.pop("no_caption", 0),  # images that serve questions only
        "dropped": dict(dropped),  # rows that could not be used, by reason; dropped.jsonl names them
        "totals": {"samples": 0, **totals},
        **plan.for_index(),
    }
    if plan.codebook_size:
        counts = np.zeros(plan.codebook_size, np.int64)
        for record in in_order:
            counts += _codes_of(folder, record, plan.codebook_size)
        index["codes"] = {"used": int((counts > 0).sum()), "perplexity": round(perplexity(counts), 3)}
    return index, [row for record in in_order for row in record["left_out"]]


def _codes_of(folder: SetFolder, record: Record, codebook_size: int) -> np.ndarray:
    """Code counts of a shard; counted again where its record comes from a finished set."""
    if record["codes"] is not None:
        return np.array(record["codes"], np.int64)
    counts = np.zeros(codebook_size, np.int64)
    for files in group_files((folder.path / record["entry"]["url"]).read_bytes()).values():
        if "codes.npy" in files:
            counts += code_counts(decode_codes(files["codes.npy"]), codebook_size)
    return counts
