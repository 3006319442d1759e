"""Checks every tar, sample and total of a set against its index. Needs neither the source nor the VQ."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.shard_set.folder import DROPPED_NAME
from data_prep.shard_set.index import code_counts, perplexity
from data_prep.shard_set.stream import Files, chunk_files, chunk_spans, sample_rows, shard_files
from data_prep.shard_set.writer import shard_name
from liquid_train.data.sample_table import SAMPLES_NAME, key_hash
from liquid_train.data.shard_format import INDEX_NAME, DamagedSample, Sample, decode_sample
from liquid_train.files import sha256_of

SHOWN = 20  # problems of one kind that are listed; the others are counted
BLOCK = 512  # bytes: every member of a tar begins at a multiple


class Problems:
    """What is wrong, by kind, in the order of finding; the first SHOWN of a kind are kept."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._lines: dict[str, list[str]] = {}

    def add(self, kind: str, line: str) -> None:
        self.counts[kind] += 1
        if self.counts[kind] <= SHOWN:
            self._lines.setdefault(kind, []).append(line)

    def __len__(self) -> int:
        return self.counts.total()

    def lines(self) -> Iterator[str]:
        for kind, lines in self._lines.items():
            yield from lines
            if self.counts[kind] > SHOWN:
                yield f"and {self.counts[kind] - SHOWN:,} more: {kind}"


def index_faults(index: dict[str, Any]) -> list[str]:
    """What makes an index.json unusable for checking its shards."""
    faults = []
    for key, kind in (
        ("recipe", dict),
        ("inputs", list),
        ("totals", dict),
        ("dropped", dict),
        ("codes", dict),
        ("vq_fingerprint", str),
        ("codebook_size", int),
        ("downsampling", int),
        ("max_code", int),
    ):
        if key in index and not isinstance(index[key], kind):
            faults.append(f"{INDEX_NAME}: {key} is not what it should be: {str(index[key])[:40]}")
    for number, entry in enumerate(index["shardlist"]):
        url = entry["url"]
        if not isinstance(url, str) or Path(url).name != url:
            faults.append(f"{INDEX_NAME}: shard {number}: url {url!r} is not a file name in the folder")
        elif not all(isinstance(entry[key], int) and entry[key] >= 0 for key in ("nsamples", "bytes")):
            faults.append(f"{INDEX_NAME}: {url}: nsamples and bytes are not numbers")
        elif not all(isinstance(entry.get(key, {}), dict) for key in ("totals", "dropped")):
            faults.append(f"{INDEX_NAME}: {url}: totals and dropped are not counts by name")
        elif not isinstance(entry["chunks"], list) or not all(
            isinstance(c, list) and len(c) == 3 and all(isinstance(n, int) for n in c) for c in entry["chunks"]
        ):
            faults.append(f"{INDEX_NAME}: {url}: chunks are not lists of first sample, samples and byte offset")
    return faults


def chunks_fit(entry: dict[str, Any]) -> bool:
    """Whether a shard's chunk table is without gaps, in order and inside the tar."""
    expected, last = 0, -1
    for first, count, offset in entry["chunks"]:
        if first != expected or count < 1 or offset % BLOCK or not last < offset < max(1, entry["bytes"]):
            return False
        expected, last = first + count, offset
    return expected == entry["nsamples"] and (not entry["chunks"] or entry["chunks"][0][2] == 0)


class SetCheck:
    """One pass over a set; `run` lists what is wrong in `problems` and calls advance(samples) as it goes."""

    def __init__(self, path: Path, index: dict[str, Any], problems: Problems) -> None:
        self.path, self.index, self.problems = path, index, problems
        self.codebook_size: int | None = index.get(
            "codebook_size", index["max_code"] + 1 if "max_code" in index else None
        )
        self.downsampling: int | None = index.get("downsampling")
        self.totals: Counter[str] = Counter()
        self.counts = np.zeros(self.codebook_size or 0, np.int64)  # of every code
        self._keys: list[tuple[dict[str, Any], np.ndarray]] = []  # (entry, hashes): 8 bytes a key
        self._without_vq = False
        self._grids: Counter[tuple[int, ...]] = Counter()
        self._rows = self._open_rows()

    def _open_rows(self) -> np.ndarray | None:
        """samples.npy where it is the one of the index."""
        recorded, file = self.index.get("samples"), self.path / SAMPLES_NAME
        if recorded is None:
            return None
        rows = sample_rows(self.path, self.index)
        if rows is None or sha256_of(file) != recorded.get("sha256"):
            self.problems.add(
                SAMPLES_NAME,
                f"{SAMPLES_NAME}: missing, or not the one of {INDEX_NAME}; `liquid data index {self.path}` makes it "
                "anew once it is removed",
            )
            return None
        return rows

    def run(self, advance: Callable[[int], None]) -> None:
        first = 0
        for number, entry in enumerate(self.index["shardlist"]):
            if "recipe" in self.index and entry["url"] != shard_name(number):
                self.problems.add(
                    "order of shards", f"{INDEX_NAME}: {entry['url']} stands where {shard_name(number)} belongs"
                )
            before = len(self.problems)
            if self._tar_is_readable(entry):
                totals = self._samples(entry, advance)
                self._check_rows(first, entry)
                if len(self.problems) == before:
                    self._compare(entry["url"], entry.get("totals", {}), totals)
                self.totals.update(totals)
            else:
                advance(entry["nsamples"])
            first += entry["nsamples"]
        self._unique_keys()
        if not self.problems:
            self._set_totals()
        self._dropped()

    def _tar_is_readable(self, entry: dict[str, Any]) -> bool:
        tar = self.path / entry["url"]
        if not tar.is_file():
            self.problems.add("missing tars", f"{entry['url']}: missing")
            return False
        try:
            if (size := tar.stat().st_size) != entry["bytes"]:
                self.problems.add("sizes", f"{entry['url']}: {size:,} bytes, {INDEX_NAME} says {entry['bytes']:,}")
            elif sha256_of(tar) != entry["sha256"]:
                self.problems.add(
                    "sha256", f"{entry['url']}: content changed: its sha256 is not the one in {INDEX_NAME}"
                )
        except OSError as error:
            self.problems.add("unreadable tars", f"{entry['url']}: cannot be read: {error.strerror}")
            return False
        return True

    def _samples(self, entry: dict[str, Any], advance: Callable[[int], None]) -> Counter[str]:
        """Check every sample of a shard; their totals as the writer counts them."""
        url, totals, hashes = entry["url"], Counter[str](), []
        expected = [(count, span) for (_, count, _), span in zip(entry["chunks"], chunk_spans(entry), strict=True)]
        if not chunks_fit(entry):
            self.problems.add(
                "chunk tables",
                f"{url}: the chunks in {INDEX_NAME} do not cover its {entry['nsamples']:,} samples in order",
            )
            expected = [(entry["nsamples"], (0, entry["bytes"]))]
        for number, ((count, _), group) in enumerate(
            zip(expected, chunk_files(self.path / url, [span for _, span in expected]), strict=True)
        ):
            if len(group) != count:
                self.problems.add(
                    "sample counts", f"{url}: {len(group):,} samples in chunk {number}, {INDEX_NAME} says {count:,}"
                )
            for key, files in group.items():
                hashes.append(key_hash(key))
                self._sample(url, key, files, totals)
            advance(count)
        self._keys.append((entry, np.array(hashes, np.uint64)))
        return totals

    def _check_rows(self, first: int, entry: dict[str, Any]) -> None:
        """Compare the keys that were just read from a tar with those of samples.npy, and look at its offsets. first:
        number of the tar's first sample in the set."""
        if self._rows is None:
            return
        rows, found = self._rows[first : first + entry["nsamples"]], self._keys[-1][1]
        offsets = np.array([*rows["offset"].tolist(), entry["bytes"]], np.int64)
        if not np.array_equal(rows["key"], found) or (offsets % BLOCK).any() or (np.diff(offsets) <= 0).any():
            self.problems.add(SAMPLES_NAME, f"{SAMPLES_NAME}: its rows for {entry['url']} are not those of its samples")

    def _sample(self, url: str, key: str, files: Files, totals: Counter[str]) -> None:
        try:
            sample = decode_sample(key, files, self.codebook_size)
        except DamagedSample as error:
            self.problems.add(f"samples: {error}", f"{url}, {key}: {error}")
            return
        text, info = sample.get("text"), sample["info"]
        if "codes" in sample:
            totals.update(
                images=1, image_codes=sample["codes"].size, captions=text is not None, no_caption=text is None
            )
            self._grids[sample["codes"].shape[:2]] += 1
            self._grid(url, sample)
        if "ids" in sample:
            totals.update(text_ids=sample["ids"].size)
        totals.update(
            samples=1,
            text_characters=len(text or ""),
            questions=_length(info, "questions"),
            messages=_length(info, "messages"),
        )

    def _grid(self, url: str, sample: Sample) -> None:
        codes, info = sample["codes"], sample["info"]
        if "max_code" in self.index:  # made by others: what VQ it is, nobody knows
            return
        if not self.codebook_size or not self.downsampling or "vq_fingerprint" not in self.index:
            if not self._without_vq:
                self.problems.add(
                    "VQ", f"{INDEX_NAME}: says no vq_fingerprint, codebook_size or downsampling, though {url} has codes"
                )
            self._without_vq = True
            return
        self.counts += code_counts(codes.astype(np.int64), self.codebook_size)
        size = codes.shape[1] * self.downsampling, codes.shape[0] * self.downsampling
        if (info.get("width"), info.get("height")) != size:
            self.problems.add(
                "grid shapes",
                f"{url}, {sample['key']}: a grid of {codes.shape[0]}x{codes.shape[1]} codes is {size[0]}x{size[1]} "
                "pixels, "
                f"its json says {info.get('width')}x{info.get('height')}",
            )

    def _compare(self, where: str, recorded: dict[str, Any], found: dict[str, Any]) -> None:
        for name, value in sorted(recorded.items()):
            if found.get(name, 0) != value:
                self.problems.add("totals", f"{where}: {found.get(name, 0)} {name}, {INDEX_NAME} says {value}")

    def _unique_keys(self) -> None:
        """Name the keys that occur twice; only the shards that may hold one are read again."""
        everything = np.concatenate([np.zeros(0, np.uint64), *(hashes for _, hashes in self._keys)])
        values, counts = np.unique(everything, return_counts=True)
        repeated = values[counts > 1]
        seen: dict[str, str] = {}
        for entry, hashes in self._keys:
            if not np.isin(hashes, repeated).any():
                continue
            for key, _ in shard_files(self.path, entry):
                if key_hash(key) not in repeated:
                    continue
                if key in seen:
                    self.problems.add("repeated keys", f"{entry['url']}, {key}: the same key as in {seen[key]}")
                seen[key] = entry["url"]

    def _set_totals(self) -> None:
        index = self.index
        self._compare(INDEX_NAME, index.get("totals", {}), self.totals)
        self._compare(INDEX_NAME, {"no_caption": index["no_caption"]} if "no_caption" in index else {}, self.totals)
        grids = [[*grid, images] for grid, images in sorted(self._grids.items())]
        if "samples" in index and index.get("grids") != grids:
            self.problems.add("totals", f"{INDEX_NAME}: its grids are not those of its images")
        dropped = sum((Counter(entry.get("dropped", {})) for entry in index["shardlist"]), Counter[str]())
        self._compare(INDEX_NAME, index.get("dropped", {}), dropped)
        if "codes" in index:
            self._compare(
                INDEX_NAME,
                index["codes"],
                {"used": int((self.counts > 0).sum()), "perplexity": round(perplexity(self.counts), 3)},
            )
        rows = sum(count for _, count in index.get("inputs", []))
        if index.get("encoder") and "inputs" in index and self.totals["samples"] + dropped.total() != rows:
            self.problems.add(
                "totals",
                f"{INDEX_NAME}: {rows:,} rows, but {self.totals['samples']:,} samples and {dropped.total():,} dropped",
            )

    def _dropped(self) -> None:
        """dropped.jsonl names as many rows, by reason, as the index counts."""
        recorded = Counter(self.index.get("dropped", {}))
        if not recorded:
            return
        try:
            found = Counter(row["reason"] for row in dropped_rows(self.path))
        except (OSError, ValueError, KeyError, TypeError) as error:
            self.problems.add(
                "dropped rows",
                f"{DROPPED_NAME}: cannot be read, though {recorded.total():,} rows were dropped: "
                f"{type(error).__name__}",
            )
            return
        for reason in sorted(recorded | found):
            if recorded[reason] != found[reason]:
                self.problems.add(
                    "dropped rows",
                    f"{DROPPED_NAME}: {found[reason]:,} rows for {reason!r}, {INDEX_NAME} says {recorded[reason]:,}",
                )


def dropped_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of dropped.jsonl: {"shard", "row", "origin", "reason"}. Raises UserError and OSError."""
    with open(path / DROPPED_NAME, encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def _length(info: dict[str, Any], name: str) -> int:
    value = info.get(name, ())
    return len(value) if isinstance(value, list) else 0
