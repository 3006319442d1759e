"""The index.json of a finished set, put together from the records of its shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from data_prep.encode.crops import TOO_LONG
from data_prep.encode.reconstruction import summary
from data_prep.shard_set.folder import SetFolder, unpack_counts
from data_prep.shard_set.plan import SetPlan
from liquid_train.data.index_builder import tar_rows
from liquid_train.data.sample_table import unpack_rows
from liquid_train.data.shard_format import INDEX_KIND, decode_codes, group_files
from liquid_train.data.storage import open_folder
from liquid_train.errors import UserError

READERS, READ_AHEAD = 8, 64  # records
Record = dict[str, Any]  # {"entry", "left_out", "codes", "rows"} of one shard


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


def complete_set(folder: SetFolder, plan: SetPlan, max_bad: float, flag: str = "tokenize.max_bad") -> dict[str, Any]:
    """Inside `folder.planning()`, with the records of all shards: write what makes the set complete, and return its
    index.

    Raises UserError when more rows than max_bad are damaged (`flag` is what the message calls it) and when no sample
    is left.
    """
    index, left_out = make_index(folder, plan)
    check_bad(index["dropped"], plan.rows, max_bad, flag)
    if not index["totals"]["samples"]:
        raise UserError(
            f"tokenize.source={plan.recipe['source']['name']}: no sample is left of {plan.rows} "
            f"({counted(index['dropped'])})"
        )
    folder.complete(index, left_out, (rows_of(folder, record) for record in _records(folder, plan.shards)))
    return index


def make_index(folder: SetFolder, plan: SetPlan) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(index.json, all rows that were left out), the same for any number of parts. Needs the records of all shards,
    whose code counts, a hundred times their other content, are held one at a time."""
    entries: list[dict[str, Any]] = []
    left_out: list[dict[str, Any]] = []
    totals: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    counts = np.zeros(plan.codebook_size or 0, np.int64)
    for record in _records(folder, plan.shards):
        # records of older versions have the byte offsets of chunks, which samples.npy has for every sample
        entries.append({key: value for key, value in record["entry"].items() if key != "chunks"})
        left_out += record["left_out"]
        totals.update(record["entry"]["totals"])
        dropped.update(record["entry"]["dropped"])
        if plan.codebook_size:
            counts += _codes_of(folder, record, plan.codebook_size)
    index: dict[str, Any] = {
        "__kind__": INDEX_KIND,
        "wids_version": 1,
        "name": plan.recipe["source"]["name"],
        "shardlist": entries,
        "no_caption": totals.pop("no_caption", 0),  # images that serve questions only
        "dropped": dict(dropped),  # rows that could not be used, by reason; dropped.jsonl names them
        "totals": {"samples": 0, **totals},
        **plan.for_index(),
    }
    if plan.codebook_size:
        index["codes"] = {"used": int((counts > 0).sum()), "perplexity": round(perplexity(counts), 3)}
    return index | summary([entry["psnr"] for entry in entries if "psnr" in entry]), left_out


def _records(folder: SetFolder, shards: int) -> Iterator[Record]:
    """The records of all shards in order, read a few at a time: a shared file system, or a store, is slow to answer."""
    with ThreadPoolExecutor(READERS) as pool:
        for first in range(0, shards, READ_AHEAD):
            for record in pool.map(folder.read_record, range(first, min(shards, first + READ_AHEAD))):
                if record is None or not folder.is_of_plan(record):
                    raise UserError(
                        f"{folder}: another process wrote to it by another plan; end all of them, then run the same "
                        "command again, which makes those shards anew"
                    )
                yield record


def rows_of(folder: SetFolder, record: Record) -> np.ndarray:
    """The rows of a shard's samples; read from its tar where its record comes from a finished set, or an older
    version."""
    if record.get("rows") is not None:
        return unpack_rows(record["rows"])
    return tar_rows(open_folder(str(folder)), record["entry"]["url"], record["entry"]["nsamples"])


def _codes_of(folder: SetFolder, record: Record, codebook_size: int) -> np.ndarray:
    """Code counts of a shard; counted again where its record comes from a finished set."""
    if record["codes"] is not None:
        return unpack_counts(record["codes"])
    counts = np.zeros(codebook_size, np.int64)
    for files in group_files(folder.place.read(record["entry"]["url"])).values():
        if "codes.npy" in files:
            counts += code_counts(decode_codes(files["codes.npy"]), codebook_size)
    return counts
