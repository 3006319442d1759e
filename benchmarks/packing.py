"""The data engine: how full its sequences are, and how many tokens one process delivers.

(a) Packing: share of tokens that are no padding, on a 1:1:1 mixture (t2i and i2t of 1,024-code images, texts of 800
tokens on average), with at most 256 documents buffered; next to it the share under the published collator, which pads
batches of 16 documents to the longest.

(b) Speed: tokens/s of reading, tokenizing and packing against a stock loop over the same tars: webdataset.WebDataset,
np.load, one tokenizer call a sample, nothing packed, nothing kept. One process each, interleaved, median of 5, whole
passes over the set. Images (t2i) and texts apart.
"""

from __future__ import annotations

import io
import json
import pydoc_data.topics
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import webdataset
from transformers import PreTrainedTokenizerBase

from data_prep.shard_set.writer import PARTIAL, ShardWriter
from liquid_train.config.schema import TrainJob
from liquid_train.data.loader import BatchLoader, source_readers
from liquid_train.data.mixture import Mixture
from liquid_train.data.packing import PackedStream
from liquid_train.data.sample_table import write_samples
from liquid_train.data.sequences import build_sequence
from liquid_train.data.settings import DataConfig, SourceConfig
from liquid_train.data.shards import ShardSet
from liquid_train.data.tasks.t2i import DEFAULT_PROMPT
from liquid_train.vocabulary import Vocabulary, train_bpe

IMAGES, TEXTS, PER_SHARD, SIDE, CODEBOOK = 2048, 2048, 1024, 32, 8192
MEAN_TEXT, BUFFERED, BATCH, DOCUMENTS, REPEATS = 800, 256, 16, 9000, 5
WINDOWS = {2048: 32, 4096: 48, 8192: 24}  # sequences packed together, such that at most 256 documents are at hand


def words() -> list[str]:
    return " ".join(pydoc_data.topics.topics.values()).split()


def write_set(folder: Path, samples: Iterator[tuple[str, np.ndarray | None]]) -> ShardSet:
    """Shards of (text, codes or None) samples."""
    (folder / PARTIAL).mkdir(parents=True)
    writers: list[ShardWriter] = []
    for n, (text, codes) in enumerate(samples):
        if n % PER_SHARD == 0:
            writers.append(ShardWriter(folder, len(writers)))
        size = {"width": SIDE * 16, "height": SIDE * 16} if codes is not None else {}
        writers[-1].add(f"{n:06d}", {**size, "source": "benchmark"}, text, codes)
    index = {
        "__kind__": "wids-shard-index-v1",
        "wids_version": 1,
        "name": folder.name,
        "shardlist": [w.finish() for w in writers],
    }
    index |= write_samples(folder, [w.rows for w in writers], sum(len(w.rows) for w in writers))
    (folder / "index.json").write_text(json.dumps(index | {"codebook_size": CODEBOOK, "vq_fingerprint": "benchmark"}))
    (folder / PARTIAL).rmdir()
    return ShardSet(folder)


def make_sets(folder: Path) -> tuple[dict[str, ShardSet], Vocabulary]:
    """Image and text shards with captions of about 12 words, and a tokenizer of the text's kind."""
    vocabulary = words()
    generator, choose = np.random.default_rng(0), random.Random(0)

    def passage(count: int) -> str:
        start = choose.randrange(len(vocabulary) - count)
        return " ".join(vocabulary[start : start + count])

    tokenizer = train_bpe((passage(500) for _ in range(200)), 4096, folder / "tokenizer")
    per_word = len(tokenizer.encode(passage(20000))) / 20000
    images = (
        (passage(choose.randint(6, 18)), generator.integers(0, CODEBOOK, (SIDE, SIDE)).astype(np.uint16))
        for _ in range(IMAGES)
    )
    lengths = generator.gamma(2.0, MEAN_TEXT / 2.0 / per_word, TEXTS).astype(int) + 1
    sets = {
        "images": write_set(folder / "images", images),
        "texts": write_set(folder / "texts", ((passage(int(n)), None) for n in lengths)),
    }
    return sets, Vocabulary(tokenizer, CODEBOOK, len(tokenizer) + CODEBOOK)


def job(
    sets: dict[str, ShardSet],
    tasks: dict[str, str],
    seq_len: int,
    window: int,
    streams: int = 1,
    max_epochs: float | None = None,
) -> TrainJob:
    sources = {task: SourceConfig(str(sets[name].path), task, 1.0, max_epochs) for task, name in tasks.items()}
    return TrainJob(
        data=DataConfig(
            sources=sources, seq_len=seq_len, global_batch=streams, window=window, workers=0, prompts=[DEFAULT_PROMPT]
        )
    )


def packing(sets: dict[str, ShardSet], vocabulary: Vocabulary) -> None:
    tasks = {"t2i": "images", "i2t": "images", "text": "texts"}
    print(
        f"share of tokens that are no padding, t2i : i2t : text = 1:1:1, images of {SIDE * SIDE} codes, texts of "
        f"{MEAN_TEXT} tokens on average"
    )
    for seq_len, window in WINDOWS.items():
        config = job(sets, tasks, seq_len, window)
        readers = source_readers(
            config.data, config.seed, {task: sets[name] for task, name in tasks.items()}, vocabulary
        )
        stream = PackedStream(0, readers, seq_len, window, vocabulary.pad)
        sequences, buffered = [], 0
        while sum(s.documents for s in sequences) < DOCUMENTS:
            sequences.append(stream.next())
            buffered = max(buffered, stream.buffered)
        assert buffered <= BUFFERED, (seq_len, buffered)
        filled = 1 - sum(s.padding for s in sequences) / (len(sequences) * seq_len)
        print(
            f"  seq_len {seq_len:,}: {filled:.2%} ({len(sequences):,} sequences, at most {buffered} documents buffered)"
        )
    mixture = Mixture(0, readers)
    lengths = [len(document) for _ in range(DOCUMENTS) if (document := mixture.next())]
    batches = [lengths[i : i + BATCH] for i in range(0, len(lengths) - BATCH + 1, BATCH)]
    print(
        f"  padded to the longest of {BATCH} documents: "
        f"{sum(map(sum, batches)) / sum(max(b) * len(b) for b in batches):.2%}"
    )


def stock(shards: ShardSet, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens of one pass of a plain webdataset loop."""
    tokens = 0
    for sample in webdataset.WebDataset([str(shards.path / s["url"]) for s in shards.shards], shardshuffle=False):
        if "codes.npy" in sample:
            tokens += np.load(io.BytesIO(sample["codes.npy"])).size + 2
        tokens += len(tokenizer(sample["txt"].decode())["input_ids"])
    return tokens


def ours(sets: dict[str, ShardSet], task: str, name: str, vocabulary: Vocabulary, workers: int) -> int:
    """Tokens, without padding, of one pass in packed sequences."""
    config = job({name: ShardSet(sets[name].path)}, {task: name}, 4096, 16, streams=4, max_epochs=1)
    config.data.workers = workers
    opened = {task: ShardSet(sets[name].path)}
    tokens = 0
    for batch in BatchLoader(config.data, config.seed, opened, vocabulary, rank=0, world=1, first_step=0, steps=10**9):
        tokens += len(batch.sequences) * config.data.seq_len - batch.padding
        if batch.ended:
            break
    return tokens


def timed(run: Callable[[], int]) -> float:
    started = time.perf_counter()
    tokens = run()
    return tokens / (time.perf_counter() - started)


def speed(sets: dict[str, ShardSet], vocabulary: Vocabulary) -> None:
    for task, name in (("t2i", "images"), ("text", "texts")):
        ways: dict[str, Callable[[], int]] = {
            "stock webdataset": lambda name=name: stock(sets[name], vocabulary.tokenizer),
            "packed, same process": lambda name=name, task=task: ours(sets, task, name, vocabulary, 0),
            "packed, one worker": lambda name=name, task=task: ours(sets, task, name, vocabulary, 1),
        }
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(REPEATS):
            for way, run in ways.items():
                rates[way].append(timed(run))
        base = statistics.median(rates["stock webdataset"])
        print(f"{name} ({task}), tokens/s, median of {REPEATS}")
        for way, found in rates.items():
            print(f"  {way}: {statistics.median(found):,.0f} ({statistics.median(found) / base:.2f} of stock)")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        sets, vocabulary = make_sets(Path(folder))
        assert len(build_sequence({"text": "x", "codes": np.zeros(1024)}, "t2i", vocabulary.tokenizer)[0]) > 1024
        packing(sets, vocabulary)
        speed(sets, vocabulary)


if __name__ == "__main__":
    main()
