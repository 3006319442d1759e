"""What the data engine refuses, warns of and explains: changed data on resume, sequences that stay empty, workers that
die."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from liquid_train.checkpoint.resume import changes_since, shard_digests
from liquid_train.config.compose import load
from liquid_train.config.schema import TrainJob
from liquid_train.data.loader import BatchLoader, LoaderError, open_sources, source_readers
from liquid_train.data.mixture import Mixture, SourceReader
from liquid_train.data.packing import PackedStream
from liquid_train.data.padding import padding_warning
from liquid_train.data.shards import ShardSet
from liquid_train.data.stream_state import ORDER_VERSION
from liquid_train.errors import UserError
from liquid_train.training.run_vocabulary import training_texts
from liquid_train.vocabulary import Vocabulary, train_bpe
from tests.shard_sets import image_set, mixture_overrides

Setup = tuple[Callable[..., TrainJob], dict[str, ShardSet], Vocabulary, Path]


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    root = tmp_path_factory.mktemp("rules")
    overrides = ["experiment=quickstart", "train.steps=8", *mixture_overrides(root)]

    def configured(*more: str) -> TrainJob:
        return load("train", [*overrides, *more])

    sets = open_sources(configured().data, None)
    tokenizer = train_bpe(training_texts(configured(), sets), 300, root / "bpe")
    return configured, sets, Vocabulary(tokenizer, 1024, len(tokenizer) + 1024), root


@pytest.fixture
def checkpoint(setup: Setup, tmp_path: Path) -> Path:
    """trainer.json as a run writes it; without the keys that older versions did not have."""
    config = setup[0]()
    trained = json.loads(json.dumps(asdict(config)))
    del (
        trained["data"]["weight_unit"],
        trained["data"]["skip"],
        trained["data"]["allow_change"],
        trained["data"]["sources"]["t2i"]["max_epochs"],
    )
    shards = shard_digests(config)
    trainer = {"step": 3, "config": trained, "shards": shards, "order_version": ORDER_VERSION}
    (tmp_path / "trainer.json").write_text(json.dumps(trainer))
    return tmp_path


def test_nothing_changed(setup: Setup, checkpoint: Path) -> None:
    config = setup[0]()
    assert changes_since(checkpoint, config, shard_digests(config)) == {}


@pytest.mark.parametrize(
    "change",
    [
        "seed=1",
        "data.seq_len=512",
        "data.streams=8",
        "data.sources.t2i.weight=3",
        "data.weight_unit=tokens",
        "data.global_batch=8",
    ],
)
def test_another_order_of_data_is_refused_unless_allowed(setup: Setup, checkpoint: Path, change: str) -> None:
    config = setup[0](change)
    with pytest.raises(ValueError, match=rf"{change.partition('=')[0]}: .*data.allow_change=true"):
        changes_since(checkpoint, config, shard_digests(config))
    assert list(changes_since(checkpoint, setup[0](change, "data.allow_change=true"), shard_digests(config))) == [
        change.partition("=")[0]
    ]


def test_another_model_is_refused_even_then(setup: Setup, checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="tokenizer_size: 300 -> 400.*resume=none$"):
        changes_since(
            checkpoint, setup[0]("backbone.tokenizer_size=400", "data.allow_change=true"), shard_digests(setup[0]())
        )


def test_changed_shards_are_seen_and_moved_ones_are_the_same(setup: Setup, checkpoint: Path, tmp_path: Path) -> None:
    configured, _, _, root = setup
    (tmp_path / "elsewhere").symlink_to(root / "images")
    moved = configured(f"data.sources.t2i.path={tmp_path / 'elsewhere'}")
    assert changes_since(checkpoint, moved, shard_digests(moved)) == {}
    other = configured(f"data.sources.t2i.path={image_set(tmp_path / 'other', samples=41)}")
    with pytest.raises(ValueError, match="data.sources.t2i.shards: digest"):
        changes_since(checkpoint, other, shard_digests(other))


@pytest.mark.parametrize("skip", ["t2i", "speech/000001"])
def test_data_skip_names_a_source_and_a_sample(setup: Setup, skip: str) -> None:
    with pytest.raises(ValueError, match=f"data.skip: {skip}: not SOURCE/KEY with a source of"):
        setup[0](f"data.skip=[{skip}]")


def test_sequences_that_stay_empty_are_announced(setup: Setup, tmp_path: Path) -> None:
    """Images of about 1,060 tokens and short texts: 2,048 holds one image a sequence; eight times that leaves hardly
    anything empty."""
    configured, sets, vocabulary, _ = setup
    big = ShardSet(image_set(tmp_path / "big", side=32))
    mixed = {"text": sets["text"], "t2i": big, "i2t": big, "vqa": big}
    few = [
        f"data.sources.{name}.weight={weight}" for name, weight in (("text", 0.5), ("t2i", 1), ("i2t", 1), ("vqa", 0))
    ]
    warning = padding_warning(configured("data.seq_len=2048", *few).data, configured().seed, mixed, vocabulary)
    assert (
        warning is not None
        and "data.seq_len=2048: about 4" in warning
        and "data.seq_len=16384 would fill them" in warning
    )
    config = configured("data.seq_len=2048", *few)
    stream = PackedStream(0, source_readers(config.data, config.seed, mixed, vocabulary), 2048, 8, vocabulary.pad)
    announced = int(warning.split("about ")[1].split("%")[0]) / 100
    assert sum(stream.next().padding for _ in range(160)) / (160 * 2048) == pytest.approx(announced, abs=0.02)
    assert padding_warning(configured("data.seq_len=16384", *few).data, configured().seed, mixed, vocabulary) is None
    assert padding_warning(configured("data.seq_len=1024").data, configured().seed, sets, vocabulary) is None


def test_a_source_without_a_usable_sample(setup: Setup) -> None:
    """Texts cannot serve t2i: said so, not searched forever."""
    configured, sets, vocabulary, _ = setup
    config = configured()
    reader = SourceReader("t2i", config.data.sources["t2i"], sets["text"], vocabulary.tokenizer, config.data, 1, 0)
    with pytest.raises(ValueError, match=r"data.sources.t2i.path=.*no sample there can serve task t2i"):
        Mixture(0, {"t2i": reader}).next()


class Trap(ShardSet):
    """A shard set whose reading process gets `signal`, or leaves with `status`, or raises."""

    how: Any = None

    def read(self, first: int, count: int) -> Any:
        self.how()
        return super().read(first, count)


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def exited() -> None:
    os._exit(7)


def raised() -> None:
    raise UserError("the disk is on fire")


@pytest.mark.parametrize(
    ("how", "says"),
    [
        (killed, "process died: .*killed by signal: Killed; often it ran out of memory"),
        (exited, "process died: .*(exit code 7|unexpectedly); "),
        (raised, "^the disk is on fire$"),
    ],
)
def test_a_worker_that_dies_says_why(setup: Setup, how: Callable[[], None], says: str) -> None:
    configured, sets, vocabulary, root = setup
    trap = Trap(root / "texts")
    trap.how = how
    config = configured("data.workers=2", "data.sources.text.weight=10")
    loader = BatchLoader(
        config.data, config.seed, {**sets, "text": trap}, vocabulary, rank=0, world=1, first_step=0, steps=4
    )
    with pytest.raises(LoaderError, match=says) as caught:
        list(loader)
    assert "\n" not in str(caught.value)
