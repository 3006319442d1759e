"""`liquid data inspect`: one sample of a set in readable form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from data_prep.shard_set.stream import open_index, shard_files
from data_prep.shard_set.vq import AskedVQ, open_vq_of_set
from liquid_train.data.shard_format import Sample
from liquid_train.data.shards import ShardSet
from liquid_train.errors import UserError


def show_sample(path: Path, which: str, decode_to: Path | None, vq: AskedVQ) -> None:
    """Print a sample, given by its key or its number, and write its decoded image. Raises UserError where there is
    none."""
    index = open_index(path)  # before the ShardSet, which would make what is missing
    shards = ShardSet(path)
    number = find(index, path, which)
    shards.damage.announce = False  # it is told below
    sample = shards.sample(number)
    if sample is None:
        raise UserError(
            f"{path}: sample {number} is damaged ({', '.join(shards.bad)}); `liquid data verify {path}` lists all "
            "that are"
        )
    shard = shards.shard_of(number)
    if decode_to is not None and "codes" not in sample:
        raise UserError(f"--decode: sample {sample['key']} has no codes, it is a text")
    print(f"{sample['key']}  (sample {number:,} of {len(shards):,}, in {shard.url})")
    print("\n".join(sample_lines(sample)))
    if decode_to is not None:
        from liquid_train.generate.images import decode, save_png

        model = open_vq_of_set(path, shards.index, vq, parts=("decoder",))
        decode_to.parent.mkdir(parents=True, exist_ok=True)
        save_png(decode_to, decode(model, sample["codes"][None])[0])
        print(f"\n{decode_to}: written")


def find(index: dict[str, Any], path: Path, which: str) -> int:
    """The number of a sample. Digits are a number, unless a zero stands before them, as in keys, or the set is not that
    long."""
    samples = sum(entry["nsamples"] for entry in index["shardlist"])
    numeric = which.isdecimal() and str(int(which)) == which
    if numeric and int(which) < samples:
        return int(which)
    start = 0
    for entry in index["shardlist"]:
        try:
            for offset, (key, _) in enumerate(shard_files(path, entry)):
                if key == which:
                    return start + offset
        except OSError as error:
            raise UserError(
                f"{path / entry['url']}: cannot be read: {error.strerror}; `liquid data verify` says what is wrong"
            ) from error
        start += entry["nsamples"]
    known = f"numbers go from 0 to {samples - 1:,}" if samples else "the set is empty"
    raise UserError(f"{path}: no sample {which}: {known}" + ("" if numeric else ", and no key is called so"))


def sample_lines(sample: Sample) -> list[str]:
    """Everything a sample holds, its caption first, its codes last."""
    info: dict[str, Any] = sample["info"]
    found = []
    if "text" in sample:
        found += ["", "caption" if "codes" in sample else "text", *_indented(sample["text"])]
    if "ids" in sample:
        found += ["", f"token ids, {sample['ids'].size}", "  " + " ".join(map(str, sample["ids"]))]
    if info.get("captions"):
        found += [
            "",
            "further wordings (weight)",
            *(f"  {caption['text']} ({caption.get('weight', 1):g})" for caption in info["captions"]),
        ]
    if info.get("questions"):
        found += [
            "",
            "questions",
            *(f"  {q['question']}  {' | '.join(map(str, q['answers']))}" for q in info["questions"]),
        ]
    if info.get("messages"):
        found += ["", "messages"]
        for message in info["messages"]:
            found += [f"  {message['role']}:", *(f"  {line}" for line in _indented(message["content"]))]
    rest = {key: value for key, value in sorted(info.items()) if key not in ("captions", "questions", "messages")}
    found += ["", "json", *(f"  {key}: {value}" for key, value in rest.items())]
    if "codes" in sample:
        found += [
            "",
            f"codes, {sample['codes'].shape[0]} rows of {sample['codes'].shape[1]}, {sample['codes'].dtype}",
            *grid(sample["codes"]),
        ]
    return found


def grid(codes: np.ndarray) -> list[str]:
    """A grid of codes as lines of numbers in columns."""
    width = len(str(codes.max()))
    return ["  " + " ".join(f"{code:>{width}}" for code in row) for row in codes]


def _indented(text: str) -> list[str]:
    return [f"  {line}" for line in text.splitlines()]
