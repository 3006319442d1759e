"""The data engine's access pattern: what a document costs, however many streams a source is dealt to.

(a) Documents a second of processor time, and bytes read of tars and of samples.npy for each, from 66,560 images of 256
codes, at 8, 64, 256 and 1,024 streams; next to it the share of the best. One process.

(b) Seconds from opening a set of 10,000 shards (10 million images) to the first batch of 64 sequences, without the
imports.

The shards are hard links to one tar, so that the sets take seconds to make, and the page cache holds all of it: it is
the program that is measured, not a disk.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.packing import words
from data_prep.shard_set.writer import PARTIAL, ShardWriter, shard_name
from liquid_train.config.schema import TrainJob
from liquid_train.data.loader import StreamDataset, source_readers
from liquid_train.data.packing import PackedStream
from liquid_train.data.sample_table import write_samples
from liquid_train.data.settings import DataConfig, SourceConfig
from liquid_train.data.shards import ShardSet
from liquid_train.vocabulary import Vocabulary, train_bpe

PER_SHARD, SIDE, CODEBOOK, SEQ_LEN, WINDOW = 1024, 16, 8192, 1024, 8
STREAMS, IMAGES, DOCUMENTS = (8, 64, 256, 1024), 66_560, 20_000
MANY_SHARDS, BATCH = 10_000, 64


def linked_set(folder: Path, shards: int) -> Path:
    """A set of `shards` tars that are one file."""
    (folder / PARTIAL).mkdir(parents=True)
    generator, known = np.random.default_rng(0), words()
    writer = ShardWriter(folder, 0)
    for n in range(PER_SHARD):
        caption = " ".join(generator.choice(known, int(generator.integers(6, 19))))
        codes = generator.integers(0, CODEBOOK, (SIDE, SIDE)).astype(np.uint16)
        writer.add(f"{n:06d}", {"width": SIDE * 16, "height": SIDE * 16, "source": "benchmark"}, caption, codes)
    entry = writer.finish()
    (folder / PARTIAL).rmdir()
    for n in range(1, shards):
        os.link(folder / entry["url"], folder / shard_name(n))
    index = {
        "__kind__": "wids-shard-index-v1",
        "wids_version": 1,
        "name": folder.name,
        "shardlist": [{**entry, "url": shard_name(n)} for n in range(shards)],
        "codebook_size": CODEBOOK,
        "vq_fingerprint": "benchmark",
        **write_samples(folder, (writer.rows for _ in range(shards)), shards * PER_SHARD),
    }
    (folder / "index.json").write_text(json.dumps(index))
    return folder


def job(path: Path, streams: int) -> TrainJob:
    sources = {"t2i": SourceConfig(str(path), "t2i")}
    return TrainJob(data=DataConfig(sources=sources, seq_len=SEQ_LEN, global_batch=streams, window=WINDOW, workers=0))


def counted(read: Callable[..., bytes], total: list[int]) -> Callable[..., bytes]:
    """`read`, which adds the length of what it returns to `total`."""

    def reading(*arguments: Any) -> bytes:
        content = read(*arguments)
        total[0] += len(content)
        return content

    return reading


def documents(path: Path, vocabulary: Vocabulary, streams: int) -> tuple[float, float]:
    """(documents a second of processor time, bytes read for each) of a run's first DOCUMENTS documents."""
    config, shards, total = job(path, streams), ShardSet(path), [0]
    shards._folder.read = counted(shards._folder.read, total)  # type: ignore[method-assign]
    readers = source_readers(config.data, config.seed, {"t2i": shards}, vocabulary)
    packed = [PackedStream(s, readers, SEQ_LEN, WINDOW, vocabulary.pad) for s in range(streams)]
    started, found, turn = time.process_time(), 0, 0
    while found < DOCUMENTS:
        found += packed[turn % streams].next().documents
        turn += 1
    return found / (time.process_time() - started), total[0] / found


def first_batch(path: Path, vocabulary: Vocabulary) -> tuple[float, float]:
    """(seconds to open a set and check its files, seconds to its first batch after that)."""
    config, started = job(path, BATCH), time.perf_counter()
    shards = ShardSet(path)
    shards.check_files()
    opened = time.perf_counter()
    next(iter(StreamDataset(config.data, config.seed, {"t2i": shards}, vocabulary, 0, 1, 0, 10, {})))
    return opened - started, time.perf_counter() - opened


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        known = words()
        tokenizer = train_bpe((" ".join(known[i : i + 500]) for i in range(0, 100_000, 500)), 4096, Path(folder, "bpe"))
        vocabulary = Vocabulary(tokenizer, CODEBOOK, len(tokenizer) + CODEBOOK)
        images = linked_set(Path(folder, "images"), IMAGES // PER_SHARD)
        found = {streams: documents(images, vocabulary, streams) for streams in STREAMS}
        best = max(rate for rate, _ in found.values())
        print(f"{IMAGES:,} images of {SIDE * SIDE} codes, the first {DOCUMENTS:,} documents")
        for streams, (rate, size) in found.items():
            share = f"{rate / best:.2f} of the best"
            print(f"  {streams:5,} streams: {rate:,.0f} documents/s ({share}), {size:,.0f} bytes each")
        many = linked_set(Path(folder, "many"), MANY_SHARDS)
        opened, first = first_batch(many, vocabulary)
        print(f"{MANY_SHARDS:,} shards: opened in {opened:.2f} s, first batch of {BATCH} sequences {first:.2f} s later")


if __name__ == "__main__":
    main()
