"""data.image_loss: the codes of images that a document gives are targets of their own task; nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from liquid_train.config.compose import load
from liquid_train.config.schema import TrainJob
from liquid_train.data.batch import RankBatch, micro_batches
from liquid_train.data.loader import BatchLoader, open_sources
from liquid_train.data.sequence_pieces import IGNORED
from liquid_train.data.tasks import FIRST, task_names
from liquid_train.errors import UserError
from liquid_train.training.heldout import heldout_set
from liquid_train.training.run_vocabulary import training_texts
from liquid_train.vocabulary import Vocabulary, train_bpe
from tests.shard_sets import mixture_overrides
from tests.tiny_model import vq

Setup = tuple[Callable[..., TrainJob], Vocabulary]


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    root = tmp_path_factory.mktemp("image_loss")
    equal = [f"data.sources.{name}.weight=1" for name in ("text", "t2i", "i2t", "vqa")]
    overrides = ["experiment=quickstart", "train.steps=8", "data.workers=0", *mixture_overrides(root), *equal]

    def configured(*more: str) -> TrainJob:
        return load("train", [*overrides, *more])

    config = configured()
    tokenizer = train_bpe(training_texts(config, open_sources(config.data, None)), 300, root / "bpe")
    return configured, Vocabulary(tokenizer, 1024, len(tokenizer) + 1024)


def first_batch(config: TrainJob, vocabulary: Vocabulary) -> RankBatch:
    sets = open_sources(config.data, None)
    return next(iter(BatchLoader(config.data, config.seed, sets, vocabulary, rank=0, world=1, first_step=0, steps=1)))


def test_given_images_are_targets(setup: Setup) -> None:
    configured, vocabulary = setup
    without, with_images = configured("data.image_loss=false"), configured("data.image_loss=true")
    number = task_names(with_images.data).index("image")
    assert number == len(FIRST)
    found = set()
    before, after = first_batch(without, vocabulary).sequences, first_batch(with_images, vocabulary).sequences
    for n, old in before.items():
        new = after[n]
        np.testing.assert_array_equal(new.ids, old.ids)
        codes = (old.ids >= vocabulary.image_start) & (old.ids < vocabulary.image_end)
        given = codes & (old.labels == IGNORED)
        np.testing.assert_array_equal(new.labels, np.where(given, old.ids, old.labels))
        np.testing.assert_array_equal(new.tasks, np.where(given, number, old.tasks))
        found |= {FIRST[task] for task in old.tasks[given]}
        assert not given[old.tasks == FIRST.index("t2i")].any()  # those have their loss as ever
    assert found == {"i2t", "vqa"}


def test_weight(setup: Setup) -> None:
    configured, vocabulary = setup
    config = configured("data.image_loss=true", "loss.weight={image: 0.25, vqa: 4}")
    batch = first_batch(config, vocabulary)
    (micro,) = micro_batches(config.data, config.loss, batch, micro_batch=4, world=1, pad=vocabulary.pad)
    names = micro.task_names
    for task, weight in (("image", 0.25), ("vqa", 4.0), ("t2i", 1.0)):
        chosen = micro.tasks == names.index(task)
        assert chosen.any() and (micro.weights[chosen] == weight).all()
    assert (micro.weights[micro.tasks == -1] == 0).all()


def test_held_out_losses_mean_the_same(setup: Setup) -> None:
    configured, vocabulary = setup
    rows = [
        [row.digest() for row in heldout_set(c.data, c.loss, 0, vocabulary, vq().fingerprint, micro_batch=2).rows]
        for c in (configured("data.image_loss=true"), configured("data.image_loss=false"))
    ]
    assert rows[0] == rows[1]


def test_its_weight_may_stay_where_it_is_turned_off(setup: Setup) -> None:
    assert setup[0]("data.image_loss=false", "loss.weight.image=0.5").loss.weight["image"] == 0.5
    with pytest.raises(UserError, match="loss.weight.images: no such task; one of text, t2i, i2t, vqa, chat, image"):
        setup[0]("loss.weight.images=1")


def test_an_own_task_of_that_name_is_refused(setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_image_task.py").write_text(
        "from liquid_train.data.tasks.text import Text\nclass Picked(Text):\n    name = 'image'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match="its name, image, is that of image; give it another"):
        setup[0]("data.image_loss=true", "data.sources.text.task=my_image_task.Picked")
