"""Canonical streams: nothing lost or doubled, images whole, the same batches for any number of ranks and workers, exact
resume."""

from __future__ import annotations

import json
from collections import Counter
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liquid_train.config.compose import load
from liquid_train.config.schema import TrainJob
from liquid_train.data.batch import RankBatch, batch_digest, micro_batches
from liquid_train.data.loader import BatchLoader, open_sources
from liquid_train.data.mixture import Mixture, SourceReader
from liquid_train.data.packing import PackedStream
from liquid_train.data.shards import ShardSet
from liquid_train.data.tasks import FIRST as TASKS
from liquid_train.training.run_vocabulary import training_texts
from liquid_train.vocabulary import Vocabulary, train_bpe
from tests.shard_sets import mixture_overrides

Setup = tuple[TrainJob, dict[str, ShardSet], Vocabulary]


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    root = tmp_path_factory.mktemp("data")
    config = load("train", ["experiment=quickstart", "train.steps=8", *mixture_overrides(root)])
    sets = open_sources(config.data, None)
    tokenizer = train_bpe(training_texts(config, sets), 300, root / "bpe")
    return config, sets, Vocabulary(tokenizer, 1024, len(tokenizer) + 1024)


def digests(
    setup: Setup, world: int, workers: int, first: int = 0, steps: int = 8, states: dict | None = None
) -> tuple[list[str], dict]:
    """Digest of every global batch, and all streams' states after the last, as `world` ranks with `workers` each see
    them."""
    config, sets, vocabulary = setup
    config.data.workers = workers
    parts: list[dict[int, bytes]] = [{} for _ in range(first, steps)]
    after: dict = dict(states or {})
    for rank in range(world):
        for i, batch in enumerate(
            BatchLoader(
                config.data,
                config.seed,
                sets,
                vocabulary,
                rank=rank,
                world=world,
                first_step=first,
                steps=steps,
                states=states,
            )
        ):
            parts[i] |= batch.digests()
            after |= batch.states
    assert all(len(p) == config.data.global_batch for p in parts)
    return [batch_digest(p) for p in parts], json.loads(
        json.dumps(after), object_hook=lambda d: {int(k) if k.isdigit() else k: v for k, v in d.items()}
    )


@pytest.mark.parametrize(("world", "workers"), [(1, 1), (1, 2), (1, 4), (2, 0), (2, 1), (3, 1), (4, 1)])
def test_batches_do_not_depend_on_ranks_or_workers(setup: Setup, world: int, workers: int) -> None:
    assert digests(setup, world, workers)[0] == digests(setup, 1, 0)[0]


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_resume_goes_on_exactly_on_another_world_size(setup: Setup, stop: int) -> None:
    whole, _ = digests(setup, 1, 0)
    before, states = digests(setup, 2, 1, steps=stop)
    after, _ = digests(setup, 3, 0, first=stop, states=states)
    assert before + after == whole


def test_more_ranks_than_streams(setup: Setup) -> None:
    config, sets, vocabulary = setup
    with pytest.raises(ValueError, match=r"data.streams=4: fewer than the 5"):
        BatchLoader(config.data, config.seed, sets, vocabulary, rank=0, world=5, first_step=0, steps=1)


def test_sequences_are_full_and_images_whole(setup: Setup) -> None:
    config, sets, vocabulary = setup
    readers = {
        n: SourceReader(n, s, sets[n], vocabulary.tokenizer, config.data, 1, 0) for n, s in config.data.sources.items()
    }
    stream = PackedStream(0, readers, 256, 8, vocabulary.pad)
    padding = 0
    for _ in range(60):
        sequence = stream.next()
        padding += sequence.padding
        assert len(sequence.ids) == len(sequence.labels) == len(sequence.positions) == 256 == sum(sequence.lengths)
        start = 0
        for length in sequence.lengths:
            ids = sequence.ids[start : start + length]
            assert sequence.labels[start] == -100 and np.array_equal(
                sequence.positions[start : start + length], np.arange(length)
            )
            if vocabulary.boi in ids:
                assert np.sum((ids >= vocabulary.image_start) & (ids < vocabulary.image_end)) == 64
                assert (
                    ids[0] == vocabulary.tokenizer.bos_token_id and vocabulary.eoi in ids and ids[-1] == vocabulary.eos
                )
            start += length
    assert padding / (60 * 256) < 0.07  # the first windows are small


@settings(max_examples=15, deadline=None)
@given(streams=st.integers(1, 40), seed=st.integers(0, 5))
def test_an_epoch_deals_every_document_once(setup: Setup, streams: int, seed: int) -> None:
    config, sets, vocabulary = setup
    reader = SourceReader(
        "vqa", config.data.sources["vqa"], sets["vqa"], vocabulary.tokenizer, config.data, streams, seed
    )
    seen: Counter[tuple] = Counter()
    for stream in range(streams):
        ordinal = 0
        while reader.epoch_of(stream, ordinal) == 0:
            item = reader.item(stream, ordinal)
            for sample, fields in map(item.plan, item.places()):
                seen[sample["key"], tuple(fields["turns"])] += 1
            ordinal += 1
    questions = Counter(q for (_, turns), n in seen.items() for q in [len(turns)] * n)
    assert set(seen.values()) == {1} and len({key for key, _ in seen}) == 40
    assert sum(size * n for size, n in questions.items()) == 40 * 3


def test_shares_follow_the_weights(setup: Setup) -> None:
    config, sets, vocabulary = setup
    readers = {
        n: SourceReader(n, s, sets[n], vocabulary.tokenizer, config.data, 1, 0) for n, s in config.data.sources.items()
    }
    mixture = Mixture(0, readers)
    total = sum(s.weight for s in config.data.sources.values())
    drawn = Counter(TASKS[document.tasks[0]] for _ in range(500) if (document := mixture.next()))
    for name, source in config.data.sources.items():
        assert abs(drawn[source.task] / 500 - source.weight / total) < 0.01, name


def test_micro_batches_of_uneven_ranks_match(setup: Setup) -> None:
    """Three ranks, four sequences: every rank runs as many micro-batches, empty ones carry no target."""
    config, sets, vocabulary = setup
    config.data.workers = 0
    counts, targets = set(), 0
    for rank in range(3):
        batch: RankBatch = next(
            iter(BatchLoader(config.data, config.seed, sets, vocabulary, rank=rank, world=3, first_step=0, steps=1))
        )
        batches = micro_batches(
            config.data, config.loss, batch, micro_batch=config.train.micro_batch, world=3, pad=vocabulary.pad
        )
        counts.add((len(batches), batches[0].input_ids.shape))
        targets += sum(int((b.targets != -100).sum()) for b in batches)
    whole: RankBatch = next(
        iter(BatchLoader(config.data, config.seed, sets, vocabulary, rank=0, world=1, first_step=0, steps=1))
    )
    assert len(counts) == 1
    assert targets == sum(int((s.labels != -100).sum()) for s in whole.sequences.values())


@pytest.mark.parametrize("normalize", ["document", "sqrt"])
def test_loss_weights(setup: Setup, normalize: Literal["document", "sqrt"]) -> None:
    config, sets, vocabulary = setup
    config.data.workers = 0
    config.loss.normalize, config.loss.weight = normalize, {"vqa": 3.0}
    batch = next(iter(BatchLoader(config.data, config.seed, sets, vocabulary, rank=0, world=1, first_step=0, steps=1)))
    (first, *_) = micro_batches(
        config.data, config.loss, batch, micro_batch=config.train.micro_batch, world=1, pad=vocabulary.pad
    )
    config.loss.normalize, config.loss.weight = "token", {}
    start = 0
    for length in batch.sequences[0].lengths:
        w, t = first.weights[0, start : start + length], first.targets[0, start : start + length]
        n = int((t != -100).sum())
        if n:
            task = TASKS[int(first.tasks[0, start : start + length].max())]
            each = (3.0 if task == "vqa" else 1.0) / (n if normalize == "document" else n**0.5)
            assert w.sum().item() == pytest.approx(n * each, rel=1e-5)
        start += length
