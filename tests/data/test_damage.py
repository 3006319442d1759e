"""Damaged samples are counted once, whoever meets them."""

from __future__ import annotations

from pathlib import Path

import pytest

from liquid_train.data.damage import Damage, DamageCount, DamageLog
from liquid_train.data.loader import BatchLoader
from liquid_train.data.settings import DataConfig, SourceConfig
from liquid_train.data.shards import ShardSet
from liquid_train.vocabulary import Vocabulary, train_bpe
from tests.shard_sets import text_set


def test_a_log_notes_each_sample_once_and_names_the_first_of_a_reason(caplog: pytest.LogCaptureFixture) -> None:
    log = DamageLog("set")
    for numbers, reason in [([3], "a"), ([3], "a"), ([4], "a"), (range(3, 8), "b"), (range(3, 8), "b")]:
        log.add(numbers, reason, f"sample {numbers[0]}")
    assert log.by_reason == {"a": 2, "b": 3} and [e.samples for e in log.entries] == [1, 1, 3]
    assert [r.getMessage() for r in caplog.records] == ["sample 3: left out: a", "sample 3: left out: b"]
    quiet = DamageLog("set")
    quiet.announce = False
    quiet.add([1], "a", "sample 1")
    assert len(caplog.records) == 2 and quiet.by_reason == {"a": 1}


def test_a_count_is_of_samples_whatever_was_told_of_them() -> None:
    count = DamageCount({"set": 100, "other": 900})
    first = [
        Damage("set", 10, 5, "lost", "tar"),
        Damage("other", 10, 1, "lost", "tar"),
        Damage("set", 0, 1, "odd", "x"),
    ]
    assert count.add(first) == first and count.add(first) == []
    assert count.add([Damage("set", 14, 3, "lost", "tar"), Damage("set", 0, 1, "odd", "x")]) == []
    assert count.of("set") == {"lost": 7, "odd": 1} and count.of("other") == {"lost": 1}
    assert count.total == 9 and count.share == 9 / 1000
    assert str(count) == "9 of 1,000 samples are damaged (lost: 8, odd: 1)"


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int]]:
    """800 texts of which 20, 2.5%, have no JSON any more, and the numbers of these."""
    path = text_set(tmp_path_factory.mktemp("damage") / "set", samples=800, words=4)
    tar = path / "shard-00000.tar"
    content, numbers = tar.read_bytes(), list(range(7, 800, 40))
    for n in numbers:
        place = content.index(f"{n:06d}.json".encode())
        at = content.index(b'{"source"', place)
        content = content[:at] + b"!" + content[at + 1 :]
    tar.write_bytes(content)
    return path, numbers


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (2, 2)])
def test_ranks_workers_and_epochs_count_a_sample_once(
    damaged: tuple[Path, list[int]], tmp_path: Path, ranks: int, workers: int
) -> None:
    path, numbers = damaged
    tokenizer = train_bpe(["document 1: raises an error with a block"], 300, tmp_path)
    vocabulary = Vocabulary(tokenizer, 1024, len(tokenizer) + 1024)
    data = DataConfig({n: SourceConfig(str(path), "text", max_epochs=3.0) for n in ("a", "b")}, seq_len=512)
    data.workers, data.global_batch, data.streams = workers, 8, 8
    shards = ShardSet(path)
    shards.sample(8)  # as a process does before its workers begin: they know of this damage, too
    sets = {"a": shards, "b": shards}
    count, told = DamageCount({str(path): 800}), 0
    for rank in range(ranks):
        loader = BatchLoader(data, 0, sets, vocabulary, rank=rank, world=ranks, first_step=0, steps=10**6)
        for batch in loader:
            told += len(batch.damage)
            count.add(batch.damage)
            if batch.ended:
                break
    assert count.of(str(path)) == {"json does not parse": len(numbers)} and count.share == 0.025
    assert told == len(numbers) if ranks * workers < 2 else told > len(numbers)
