"""What streams are dealt: how sources are cut into items, how documents follow one another, and what is read for it."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from liquid_train.config.schema import TrainJob
from liquid_train.data.items import MOST_SAMPLES, item_count, item_range
from liquid_train.data.loader import StreamDataset, source_readers
from liquid_train.data.mixture import Mixture
from liquid_train.data.packing import PackedStream
from liquid_train.data.settings import DataConfig, SourceConfig
from liquid_train.data.shards import ShardSet
from liquid_train.vocabulary import Vocabulary, train_bpe
from tests.data.test_shards import as_older_version
from tests.shard_sets import image_set

ASKED = 3  # questions of an image


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    tokenizer = train_bpe(
        ["a teal circle, number 1", "what color is the shape? red"], 300, tmp_path_factory.mktemp("b")
    )
    return Vocabulary(tokenizer, 1024, len(tokenizer) + 1024)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_set(tmp_path_factory.mktemp("images") / "set", samples=1300, per_shard=400, side=2, questions=ASKED)


def job(path: Path, task: str, streams: int, **data: Any) -> TrainJob:
    sources = {"s": SourceConfig(str(path), task)}
    return TrainJob(data=DataConfig(sources, streams=streams, global_batch=streams, workers=0, **data))


@given(samples=st.integers(1, 10**6), streams=st.integers(1, 2048))
def test_every_stream_gets_as_many_items_none_of_them_large(samples: int, streams: int) -> None:
    items = item_count(samples, streams)
    assert items == samples < streams or items % streams == 0
    ranges = [item_range(samples, items, i) for i in {0, 1 % items, items // 2, items - 1}]
    assert ranges[0].start == 0 and item_range(samples, items, items - 1).stop == samples
    assert max(map(len, ranges)) <= MOST_SAMPLES and max(map(len, ranges)) - min(map(len, ranges)) <= 1
    for i in range(1, items)[:3]:
        assert item_range(samples, items, i).start == item_range(samples, items, i - 1).stop


class Counted(ShardSet):
    """Counts what is read of tars, in bytes."""

    read_bytes = 0

    def _bytes(self, name: str, sha256: str, start: int, end: int) -> bytes:
        self.read_bytes += (end - start) * name.endswith(".tar")
        return super()._bytes(name, sha256, start, end)


@pytest.mark.parametrize("streams", [1, 5, 6, 64, 1300, 2000])
def test_a_pass_reads_every_byte_once(streams: int, images: Path, vocabulary: Vocabulary) -> None:
    """However a source is cut, it is not read more than once, and nothing that is not asked for; one stream more
    changes nothing."""
    shards = Counted(images)
    config = job(images, "t2i", streams)
    reader = source_readers(config.data, config.seed, {"s": shards}, vocabulary)["s"]
    keys = Counter[str]()
    for stream in range(streams):
        ordinal = 0
        while reader.epoch_of(stream, ordinal) == 0:
            item = reader.item(stream, ordinal)
            keys.update(item.plan(place)[0]["key"] for place in item.places())
            ordinal += 1
    assert set(keys.values()) == {1} and len(keys) == 1300
    assert shards.read_bytes <= sum(shard.bytes for shard in shards.shards)


def keys_of(path: Path, vocabulary: Vocabulary, task: str, streams: int, count: int) -> list[list[str]]:
    """Keys of the first `count` documents of every stream."""
    config = job(path, task, streams)
    readers = source_readers(config.data, config.seed, {"s": ShardSet(path)}, vocabulary)
    mixtures = [Mixture(stream, readers) for stream in range(streams)]
    return [[d.key for _ in range(count) if (d := mixture.next()) is not None] for mixture in mixtures]


def test_questions_of_one_image_are_a_pass_over_the_item_apart(images: Path, vocabulary: Vocabulary) -> None:
    for found in keys_of(images, vocabulary, "vqa", 5, 130 * ASKED):
        rounds = [found[i * 130 : (i + 1) * 130] for i in range(ASKED)]  # 1,300 images in 10 items
        assert all(set(r) == set(rounds[0]) and len(set(r)) == 130 for r in rounds) and rounds[0] != rounds[1]


@pytest.mark.parametrize("damage", ["none", "one sample", "the end of a tar"])
def test_the_order_does_not_depend_on_samples_npy(
    damage: str, images: Path, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    """Nor does damage move any other sample."""
    sets = [Path(shutil.copytree(images, tmp_path / name)) for name in ("new", "older")]
    as_older_version(sets[1])
    offsets = np.load(images / "samples.npy")["offset"]
    lost: set[str] = set()
    for path in sets:
        with open(path / "shard-00001.tar", "r+b") as tar:
            if damage == "one sample":
                lost = {"000500"}
                tar.seek(offsets[500])
                tar.write(b"\xff" * int(offsets[501] - offsets[500]))
            elif damage == "the end of a tar":
                lost = {f"{n:06d}" for n in range(700, 800)}
                tar.truncate(int(offsets[700]))
    whole = keys_of(images, vocabulary, "i2t", 3, 430)
    for path in sets:
        found = keys_of(path, vocabulary, "i2t", 3, 390)
        assert [[k for k in keys if k not in lost][: len(f)] for keys, f in zip(whole, found, strict=True)] == [
            f[: len([k for k in keys if k not in lost])] for keys, f in zip(whole, found, strict=True)
        ]
    bad = [ShardSet(path) for path in sets]
    assert [len(list(shards)) for shards in bad] == [1300 - len(lost)] * 2
    assert bad[0].bad == bad[1].bad and bad[0].bad.total() == len(lost)


def test_passes_are_counted_by_documents(images: Path, vocabulary: Vocabulary) -> None:
    """With several questions an image, an epoch is not said to be over when every image has been seen once."""
    config = job(images, "vqa", 4, seq_len=256, window=2)
    sets = {"s": ShardSet(images)}
    dataset = StreamDataset(config.data, config.seed, sets, vocabulary, 0, 1, 0, 10**6, {})
    documents = 0
    for part in dataset:
        documents += sum(s.documents for s in part["sequences"].values())
        passes = documents / (1300 * ASKED)
        assert part["epochs"]["s"] == pytest.approx(passes, abs=0.05)
        if passes > 1.2:
            break


def test_most_questions_of_a_batch_are_of_different_images(images: Path, vocabulary: Vocabulary) -> None:
    """As many as in independent draws, but for a tenth."""
    config = job(images, "vqa", 8, seq_len=512)
    readers = source_readers(config.data, config.seed, {"s": ShardSet(images)}, vocabulary)
    streams = [PackedStream(s, readers, 512, 8, vocabulary.pad) for s in range(8)]
    for _ in range(10):
        found = [name for stream in streams for name in stream.next().names]
        expected = 1300 * (1 - (1 - 1 / 1300) ** len(found))
        assert len(found) > 60 and len(set(found)) >= 0.9 * expected
