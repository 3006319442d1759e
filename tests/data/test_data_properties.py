"""What holds for any mixture: every document once a pass, images whole, shares as asked for, the same rows after any
interruption.

Documents here have their length and their number as their only content, so that thousands of streams are quick to pack.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liquid_train.checkpoint.resume import continued
from liquid_train.config.schema import TrainJob
from liquid_train.data import items, loader
from liquid_train.data.batch import RankBatch, batch_digest
from liquid_train.data.damage import DamageLog
from liquid_train.data.loader import BatchLoader
from liquid_train.data.mixture import Document, Mixture, SourceReader
from liquid_train.data.packing import PackedStream
from liquid_train.data.settings import DataConfig, SourceConfig
from liquid_train.data.shard_format import Sample
from liquid_train.data.stream_state import DocumentName

TASK_OF = {"text": "text", "t2i": "t2i", "vqa": "i2t"}


@dataclass
class Lengths:
    """Stands for a ShardSet: samples are lengths of documents."""

    lengths: list[int]
    bad: Counter[str] = field(default_factory=Counter)
    ids_fingerprint: str | None = None
    codebook_size: int = 0
    path: Path = Path("nowhere")
    damage: DamageLog = field(default_factory=lambda: DamageLog("nowhere"))

    @property
    def num_samples(self) -> int:
        return len(self.lengths)

    def read(self, first: int, count: int) -> Samples:
        return Samples(
            {"key": str(n), "text": "", "codes": np.zeros((1, 1)), "info": {"length": self.lengths[n]}}
            for n in range(first, first + count)
        )

    def rows(self, first: int, count: int) -> None:
        """As of a set without samples.npy."""


class Samples(list[Sample]):
    """Stands for a SampleRange."""

    rows = None


class LengthReader(SourceReader):
    """Documents whose ids are all the number of their sample."""

    def document(self, stream: int, name: DocumentName) -> Document | None:
        sample, _ = self.item(stream, name["ordinal"]).plan(name["offset"])
        ids = np.full(sample["info"]["length"] - name["start"], int(sample["key"]))
        tasks = np.full(len(ids), self.number, np.int8)
        return Document(name, sample["key"], ids, ids, tasks, self.task.splittable)


def job(
    lengths: dict[str, list[int]],
    streams: int,
    *,
    weights: dict[str, float] | None = None,
    max_epochs: float | None = None,
    **data: Any,
) -> TrainJob:
    sources = {name: SourceConfig(name, TASK_OF[name], (weights or {}).get(name, 1.0), max_epochs) for name in lengths}
    return TrainJob(data=DataConfig(sources=sources, streams=streams, workers=0, **data))


def readers_of(config: TrainJob, lengths: dict[str, list[int]], most_samples: int = 5) -> dict[str, SourceReader]:
    """most_samples: of an item."""
    sets = {name: Lengths(values) for name, values in lengths.items()}
    tokenizer, streams = cast(Any, None), config.data.streams or config.data.global_batch
    with patch.object(items, "MOST_SAMPLES", most_samples):
        return {
            n: LengthReader(n, s, cast(Any, sets[n]), tokenizer, config.data, streams, config.seed)
            for n, s in config.data.sources.items()
        }


def batches(
    config: TrainJob,
    readers: dict[str, SourceReader],
    world: int,
    steps: int,
    first: int = 0,
    states: dict | None = None,
    *,
    to_the_end: bool = False,
) -> list[list[RankBatch]]:
    """Every rank's batches of `steps` steps, or up to its first without a document."""
    vocabulary = cast(Any, SimpleNamespace(pad=0))
    found: list[list[RankBatch]] = [[] for _ in range(world)]
    with patch.object(loader, "source_readers", lambda *_: readers):
        for rank in range(world):
            for batch in BatchLoader(
                config.data,
                config.seed,
                {},
                vocabulary,
                rank=rank,
                world=world,
                first_step=first,
                steps=steps,
                states=states,
            ):
                found[rank].append(batch)
                if batch.ended and to_the_end:
                    break
    return found


mixtures = st.fixed_dictionaries(
    {
        "text": st.lists(st.integers(1, 90), min_size=1, max_size=40),
        "t2i": st.lists(st.sampled_from([20, 21, 33]), min_size=1, max_size=40),
        "vqa": st.lists(st.integers(2, 33), min_size=1, max_size=10),
    }
)


@settings(max_examples=60, deadline=None)
@given(
    lengths=mixtures,
    streams=st.one_of(st.integers(1, 12), st.integers(1, 1024)),
    world=st.integers(1, 9),
    batch_share=st.sampled_from([0.3, 0.5, 1.0, 1.5]),
    seq_len=st.integers(33, 100),
    window=st.integers(1, 4),
    most_samples=st.integers(1, 9),
    weights=st.fixed_dictionaries({"text": st.floats(0.1, 10), "t2i": st.floats(0.1, 10)}),
    max_epochs=st.integers(1, 2),
    unit=st.sampled_from(["documents", "tokens"]),
    seed=st.integers(0, 3),
)
def test_every_document_once_a_pass(
    lengths: Any,
    streams: int,
    world: int,
    batch_share: float,
    seq_len: int,
    window: int,
    most_samples: int,
    weights: Any,
    max_epochs: int,
    unit: str,
    seed: int,
) -> None:
    """Over all ranks, to the end of the row: each document `max_epochs` times, with all its tokens, images in one
    piece."""
    world, batch = min(world, streams), max(1, round(streams * batch_share))
    options = {"global_batch": batch, "seq_len": seq_len, "window": window, "weight_unit": unit}
    config = job(lengths, streams, weights=weights, max_epochs=max_epochs, **options)
    config.seed = seed
    readers = readers_of(config, lengths, most_samples)
    begun: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    for rank in batches(config, readers, world, steps=100_000, to_the_end=True):
        assert rank[-1].ended
        for part in rank:
            for sequence in part.sequences.values():
                assert (
                    len(sequence.ids)
                    == len(sequence.labels)
                    == len(sequence.positions)
                    == len(sequence.tasks)
                    == seq_len
                    == sum(sequence.lengths)
                )
                assert not (part.ended and sequence.documents)
                for name, start, length in zip(sequence.names, sequence.starts, sequence.lengths, strict=False):
                    begun[name] += start == 0
                    seen[name] += length
                    source, key = name.split("/")
                    assert source == "text" or length == lengths[source][int(key)], "an image was cut"
    assert begun == {f"{source}/{n}": max_epochs for source, values in lengths.items() for n in range(len(values))}
    assert seen == {
        f"{source}/{n}": max_epochs * length for source, values in lengths.items() for n, length in enumerate(values)
    }


@settings(max_examples=30, deadline=None)
@given(lengths=mixtures, streams=st.integers(1, 30), seed=st.integers(0, 3), data=st.data())
def test_the_same_batches_after_any_interruption(lengths: Any, streams: int, seed: int, data: st.DataObject) -> None:
    """Any split of the ranks, and any resume on another number of ranks, gives the same digests step by step, to the
    end of the row."""
    config = job(
        lengths, streams, max_epochs=data.draw(st.sampled_from([None, 3])), global_batch=streams, seq_len=64, window=2
    )
    config.seed, steps = seed, 12
    whole = [batch_digest(b.digests()) for b in batches(config, readers_of(config, lengths), 1, steps)[0]]
    states: dict = {}
    step, found = 0, []
    while step < steps:
        world = data.draw(st.integers(1, min(4, streams)), label="ranks")
        stop = data.draw(st.integers(step + 1, steps), label="stopped at")
        ranks = batches(config, readers_of(config, lengths), world, stop, step, states)
        for parts in zip(*ranks, strict=True):
            found.append(batch_digest({g: d for part in parts for g, d in part.digests().items()}))
            states = states | {s: state for part in parts for s, state in part.states.items()}
        step = stop
    assert found == whole


@settings(max_examples=4, deadline=None)
@given(
    weights=st.fixed_dictionaries({name: st.floats(0.2, 5) for name in TASK_OF}),
    unit=st.sampled_from(["documents", "tokens"]),
)
def test_shares_are_those_of_the_weights(weights: dict[str, float], unit: str) -> None:
    """Within 1% (of the whole) after 100,000 documents, in the unit that the weights have."""
    generator = np.random.default_rng(0)
    lengths = {
        "text": generator.integers(1, 2000, 300).tolist(),
        "t2i": [1064] * 300,
        "vqa": generator.integers(1030, 1100, 300).tolist(),
    }
    config = job(lengths, 1, weights=weights, weight_unit=unit)
    mixture = Mixture(0, readers_of(config, lengths))
    counts = {"documents": mixture.drawn, "tokens": mixture.tokens}[unit]
    for _ in range(100_000):
        assert mixture.next() is not None
    assert sum(mixture.drawn.values()) == 100_000
    for name, weight in weights.items():
        assert counts[name] / sum(counts.values()) == pytest.approx(weight / sum(weights.values()), abs=0.01)


def test_the_others_take_over_the_share_of_a_source_that_is_used_up() -> None:
    lengths = {"text": [10] * 1000, "t2i": [20] * 1000, "vqa": [20] * 30}
    config = job(lengths, 1, weights={"text": 3.0, "t2i": 1.0, "vqa": 4.0})
    config.data.sources["vqa"].max_epochs = 1
    mixture = Mixture(0, readers_of(config, lengths))
    for _ in range(60):
        assert mixture.next() is not None
    assert abs(mixture.drawn["vqa"] - 30) <= 1
    before = dict(mixture.drawn)
    for _ in range(400):
        assert mixture.next() is not None
    after = {name: mixture.drawn[name] - before[name] for name in before}
    assert after["vqa"] <= 1 and abs(after["text"] - 300) <= 2 and abs(after["t2i"] - 100) <= 2


@pytest.mark.parametrize("unit", ["documents", "tokens"])
def test_a_skipped_document_leaves_a_hole_and_moves_nothing(unit: str) -> None:
    lengths = {"text": list(range(10, 80)), "t2i": [20, 33] * 20}
    skipped = {"text/60", "t2i/7"}
    rows = []
    for skip in ([], sorted(skipped)):
        config = job(lengths, 1, seq_len=64, window=4, weight_unit=unit, skip=skip)
        readers = readers_of(config, lengths)
        stream = PackedStream(0, readers, 64, 4, 0)
        rows.append(([stream.next() for _ in range(120)], readers, stream.state))
    (whole, _, state), (holed, readers, state_with_skip) = rows
    assert state == state_with_skip, "changing data.skip must not change where a stream stands"
    assert any(skipped & set(s.names) for s in whole)
    for a, b in zip(whole, holed, strict=True):
        assert [n for n in a.names if n not in skipped] == b.names
        if not skipped & set(a.names):
            assert a.digest() == b.digest()
    begun = Counter(n for s in whole for n, start in zip(s.names, s.starts, strict=True) if start == 0 and n in skipped)
    assert all(r.dropped["named in data.skip"] >= begun[n] > 0 for n in skipped for r in [readers[n.split("/")[0]]])


def test_states_that_hold_after_a_change_of_the_mixture() -> None:
    """New weights and another seq_len: positions go on; a source with other shards begins anew; another seed:
    everything does."""
    lengths = {"text": [10] * 400, "t2i": [20] * 400}
    config = job(lengths, 2, global_batch=2, seq_len=64, window=2)
    states = batches(config, readers_of(config, lengths), 1, 9)[0][-1].states
    after, lines = continued(states, {"data.seq_len": (64, 80), "data.sources.text.weight": (1, 2)}, config)
    assert "packed again" in lines[0]
    for s, state in after.items():
        assert (
            state["mixture"]["positions"] == states[s]["mixture"]["positions"]
            and state["carry"] == states[s]["carry"]
            and state["emitted"] == 0
        )
    assert batches(config, readers_of(config, lengths), 1, 12, 9, after)
    after, lines = continued(states, {"data.sources.t2i.shards": ("a", "b")}, config)
    assert "t2i begins from the start" in lines[0] and "text goes on" in lines[1]
    assert all(
        set(s["mixture"]["positions"]) == {"text"} and {n["source"] for n in s["carry"]} <= {"text"}
        for s in after.values()
    )
    after, lines = continued(states, {"seed": (0, 1)}, config)
    assert after == {} and "begins from the start" in lines[0]
    assert continued(states, {"data.streams": (3, 2)}, config)[0] == {}
    assert continued(states, {"data.global_batch": (3, 2)}, config)[0] == states, "as many streams as before"
    config.data.streams = None
    assert continued(states, {"data.global_batch": (3, 2)}, config)[0] == {}
    assert continued({0: states[0]}, {}, config) == ({0: states[0]}, []), (
        "a stream that was not read from yet has no state"
    )
    assert continued(states, {"optimizer.lr": (1, 2), "data.skip": ([], ["t2i/3"])}, config) == (states, [])
