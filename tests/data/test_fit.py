"""What is refused before training, from the index alone: images that no sequence has room for, unknown keys."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from data_prep.shard_set.writer import PARTIAL, ShardWriter
from liquid_train.data.fit import check_fit, check_skip
from liquid_train.data.mixture import SourceReader
from liquid_train.data.sample_table import image_lengths
from liquid_train.data.settings import DataConfig, SourceConfig
from liquid_train.data.shards import ShardSet
from liquid_train.vocabulary import Vocabulary, train_bpe
from tests.data.test_shards import as_older_version
from tests.shard_sets import finish_set

SMALL, LARGE = (4, 4), (8, 10)  # rows and columns of codes


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    tokenizer = train_bpe(["a red circle, what is it? Generate an image"], 300, tmp_path_factory.mktemp("bpe"))
    return Vocabulary(tokenizer, 1024, len(tokenizer) + 1024)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """15 small images and 5 large ones."""
    folder = tmp_path_factory.mktemp("mixed") / "set"
    (folder / PARTIAL).mkdir(parents=True)
    writer = ShardWriter(folder, 0)
    for n in range(20):
        codes = np.zeros(LARGE if n % 4 == 3 else SMALL, np.uint16)
        info = {"width": 1, "height": 1, "questions": [{"question": "what is it?", "answers": ["a circle"]}]}
        writer.add(f"{n:03d}", info, "a red circle", codes)
    return finish_set(folder, [writer], vq_fingerprint="f" * 64, codebook_size=1024)


def data_of(path: Path, task: str, seq_len: int, **options: object) -> DataConfig:
    return DataConfig({"pictures": SourceConfig(str(path), task)}, seq_len=seq_len, global_batch=1, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("task", ["t2i", "i2t", "vqa"])
def test_images_that_do_not_fit(task: str, mixed: Path, vocabulary: Vocabulary) -> None:
    """The length that is asked for is the least one at which training can use the images."""
    sets = {"pictures": ShardSet(mixed)}
    for limit, says in ((0.1, r"5 of the 20 images of data.sources.pictures: one of 80 codes"), (0.3, "")):
        data = data_of(mixed, task, 60, max_dropped=limit)
        if says:
            with pytest.raises(ValueError, match=rf"^data.seq_len=60: too short for {says} .*give data.seq_len=(\d+)"):
                check_fit(data, sets, vocabulary)
        else:
            check_fit(data, sets, vocabulary)
    with pytest.raises(ValueError, match="too short for all 20 images") as caught:
        check_fit(data_of(mixed, task, 17, max_dropped=1.0), sets, vocabulary)
    least = int(str(caught.value).split("give data.seq_len=")[1].split()[0])
    check_fit(data_of(mixed, task, least, max_dropped=0.0), sets, vocabulary)
    if task != "vqa":  # of a question and its answer nothing can be left out
        data = data_of(mixed, task, least, unconditional=0.0)
        reader = SourceReader("pictures", data.sources["pictures"], sets["pictures"], vocabulary.tokenizer, data, 1, 0)
        assert len(reader.first(20)) == 20 and not reader.lost


def test_a_set_of_an_older_version_is_judged_by_its_totals(mixed: Path, vocabulary: Vocabulary, tmp_path: Path) -> None:
    path = Path(shutil.copytree(mixed, tmp_path / "set"))
    as_older_version(path)
    shards = ShardSet(path)
    assert image_lengths(ShardSet(mixed).index) == [(4, 4, 15), (8, 10, 5)] and image_lengths(shards.index) == []
    shards.index["totals"] = {"images": 20, "image_codes": 640}
    with pytest.raises(ValueError, match="too short for all 20 images of data.sources.pictures: one of 32 codes"):
        check_fit(data_of(path, "i2t", 30), {"pictures": shards}, vocabulary)


def test_keys_to_skip_that_do_not_exist(mixed: Path, tmp_path: Path) -> None:
    check_skip(data_of(mixed, "t2i", 99, skip=["pictures/007", "pictures/019"]), {"pictures": ShardSet(mixed)})
    with pytest.raises(ValueError, match="^data.skip=pictures/20: no such sample in .*/set; "):
        check_skip(data_of(mixed, "t2i", 99, skip=["pictures/007", "pictures/20"]), {"pictures": ShardSet(mixed)})
    path = Path(shutil.copytree(mixed, tmp_path / "set"))
    as_older_version(path)
    (line,) = check_skip(data_of(path, "t2i", 99, skip=["pictures/20"]), {"pictures": ShardSet(path)})
    assert f"`liquid data index {path}`" in line
