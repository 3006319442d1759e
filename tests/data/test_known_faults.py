"""Known faults between shards and batches: each test says what is right, the reason of its mark what happens today."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.shard_set import writer
from liquid_train.cli import main
from liquid_train.config.schema import TrainJob
from liquid_train.data import remote
from liquid_train.data.batch import RankBatch
from liquid_train.data.loader import BatchLoader, source_readers
from liquid_train.data.mixture import Mixture, SourceReader
from liquid_train.data.settings import DataConfig, SourceConfig
from liquid_train.data.shards import ShardSet
from liquid_train.data.tasks import FIRST as TASKS
from liquid_train.vocabulary import Vocabulary, train_bpe
from tests.data import test_data_properties as lengths_only
from tests.range_server import RangeServer
from tests.shard_sets import image_set, text_set
from tests.source_files import tar

TEXT = [
    "a teal circle, number 1",
    "what color is the shape? red blue yes no",
    "document 2: raises an error with a block",
]
NO_QUESTIONS: dict[str, Any] = {"questions": None}


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    tokenizer = train_bpe(TEXT, 300, tmp_path_factory.mktemp("bpe"))
    return Vocabulary(tokenizer, 1024, len(tokenizer) + 1024)


def job(path: Path | str, task: str, max_epochs: float | None = None, **data: Any) -> TrainJob:
    return TrainJob(data=DataConfig({"s": SourceConfig(str(path), task, max_epochs=max_epochs)}, workers=0, **data))


def batches(config: TrainJob, vocabulary: Vocabulary, steps: int = 10**6) -> list[RankBatch]:
    """All batches of one rank, up to the end of the data where it has one."""
    found = []
    sets = {"s": ShardSet(config.data.sources["s"].path, codebook_size=1024)}
    for batch in BatchLoader(config.data, config.seed, sets, vocabulary, rank=0, world=1, first_step=0, steps=steps):
        found.append(batch)
        if batch.ended:
            break
    return found


def names(found: list[RankBatch]) -> list[str]:
    """Keys of all documents' samples in order."""
    return [name.partition("/")[2] for batch in found for s in batch.sequences.values() for name in s.names]


def foreign_set(folder: Path, samples: int, infos: dict[int, dict[str, Any]]) -> Path:
    """Captioned images with a question as another program writes them, without an index. infos: what some say too."""
    codes = io.BytesIO()
    np.save(codes, np.arange(64, dtype=np.uint16).reshape(8, 8))
    members: list[tuple[str, bytes]] = []
    for n in range(samples):
        says = {
            "width": 64,
            "height": 64,
            "questions": [{"question": "what color?", "answers": ["yes"]}],
            **infos.get(n, {}),
        }
        kinds = {"codes.npy": codes.getvalue(), "json": json.dumps(says).encode(), "txt": b"a red circle"}
        members += [(f"{n:06d}.{kind}", content) for kind, content in kinds.items()]
    folder.mkdir()
    tar(folder / "shard-00000.tar", members)
    return folder


# --- the order of documents


@pytest.mark.xfail(
    strict=True, raises=AssertionError, reason="a window's sequences come sorted by task, in all streams alike"
)
def test_every_step_has_each_tasks_share() -> None:
    """16 sequences of 1,024 tokens a step, windows of 8: a task never falls below a third of its mean share."""
    random = np.random.default_rng(0)
    lengths = {
        "text": random.integers(500, 1500, 600),
        "t2i": random.integers(280, 292, 2000),
        "vqa": random.integers(272, 284, 2000),
    }
    found = {name: values.tolist() for name, values in lengths.items()}
    config = lengths_only.job(found, 16, seq_len=1024, global_batch=16, window=8)
    readers = lengths_only.readers_of(config, found)
    (steps,) = lengths_only.batches(config, readers, 1, 31)
    later = steps[15:]  # after windows of 1, 2, 4 and 8
    tasks = [np.concatenate([s.tasks for s in batch.sequences.values()]) for batch in later]
    for task in ("text", "t2i", "i2t"):
        shares = [float((t == TASKS.index(task)).mean()) for t in tasks]
        assert min(shares) >= np.mean(shares) / 3, (task, shares)


@pytest.mark.xfail(strict=True, raises=AssertionError, reason="an image's questions follow one another in one stream")
def test_most_questions_of_a_batch_are_of_different_images(vocabulary: Vocabulary, tmp_path: Path) -> None:
    """Of 600 images with ten questions each, a batch of about a hundred documents meets few twice."""
    asked = {"questions": [{"question": f"what is number {k}?", "answers": ["yes"]} for k in range(10)]}
    images = foreign_set(tmp_path / "set", 600, {n: asked for n in range(600)})
    shares = []
    for batch in batches(job(images, "vqa", seq_len=1024, global_batch=8), vocabulary, steps=10):
        found = names([batch])
        assert len(found) > 60
        shares.append(len(set(found)) / len(found))
    assert np.mean(shares) >= 0.5


class Counted(ShardSet):
    """Counts the chunks that are read and parsed."""

    reads = 0

    def _chunk_bytes(self, i: int) -> bytes:
        self.reads += 1
        return super()._chunk_bytes(i)


@pytest.mark.parametrize(
    "streams",
    [
        100,
        pytest.param(
            101, marks=pytest.mark.xfail(strict=True, raises=AssertionError, reason="every document reads a chunk")
        ),
    ],
)
def test_a_chunk_is_read_once_for_many_documents(
    streams: int, vocabulary: Vocabulary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """400 chunks, more than are kept in memory; one stream more does not change how often they are read."""
    size, chunks = 32, 400
    monkeypatch.setattr(writer, "CHUNK_SAMPLES", size)
    path = text_set(tmp_path / "set", samples=size * chunks, words=3)
    shards = Counted(path)
    assert len(shards.chunks) == chunks
    config = job(path, "text", streams=streams)
    readers = source_readers(config.data, config.seed, {"s": shards}, vocabulary)
    mixtures = [Mixture(stream, readers) for stream in range(streams)]
    for _ in range(size):
        for mixture in mixtures:
            assert mixture.next() is not None
    assert shards.reads <= 3 * streams


# --- samples whose KEY.json is odd


def odd(name: str, task: str, info: dict[str, Any], error: type[Exception] | None) -> Any:
    reason = f"ends the loader: {error.__name__}" if error else "its first letter is learned as the answer"
    return pytest.param(
        task, info, id=name, marks=pytest.mark.xfail(strict=True, reason=reason, raises=error or AssertionError)
    )


ODD = [
    odd("captions-strings", "t2i", {"captions": ["a", "b"]}, AttributeError),
    odd("captions-weight-0", "t2i", {"captions": [{"text": "a", "weight": 0}]}, ValueError),
    odd("captions-no-text", "i2t", {"captions": [{"weight": 1}]}, KeyError),
    odd("captions-null-text", "i2t", {"captions": [{"text": None}]}, ValueError),
    odd(
        "captions-negative-weight",
        "i2t",
        {"captions": [{"text": "a", "weight": -1}, {"text": "b", "weight": 3}]},
        ValueError,
    ),
    odd("captions-object", "i2t", {"captions": {"en": "a"}}, AttributeError),
    odd("captions-half-a-surrogate-pair", "i2t", {"captions": [{"text": "\ud800"}]}, TypeError),
    odd("questions-null", "vqa", NO_QUESTIONS, TypeError),
    odd("answers-empty", "vqa", {"questions": [{"question": "q?", "answers": []}]}, ValueError),
    odd("answers-missing", "vqa", {"questions": [{"question": "q?"}]}, KeyError),
    odd("answers-number", "vqa", {"questions": [{"question": "q?", "answers": [3]}]}, TypeError),
    odd("question-null", "vqa", {"questions": [{"question": None, "answers": ["a"]}]}, TypeError),
    odd("answers-string", "vqa", {"questions": [{"question": "q?", "answers": "yes"}]}, None),
    pytest.param("t2i", {"multiratio": True, "width": None}, id="multiratio-without-width"),
]


@pytest.mark.parametrize(("task", "info"), ODD)
@pytest.mark.filterwarnings("ignore:invalid value encountered in divide")
def test_an_odd_sample_is_used_or_counted(
    task: str, info: dict[str, Any], vocabulary: Vocabulary, tmp_path: Path
) -> None:
    path = foreign_set(tmp_path / "set", 40, {20: info})
    found = batches(job(path, task, max_epochs=1.0, seq_len=128, global_batch=2), vocabulary)
    seen = set(names(found))
    assert seen - {"000020"} == {f"{n:06d}" for n in range(40) if n != 20}
    assert "000020" in seen or found[-1].dropped or info is NO_QUESTIONS  # an image without questions is no fault
    if task == "vqa" and isinstance(info["questions"], list) and info["questions"][0].get("answers") == "yes":
        assert learned(found, "000020", vocabulary) in ("yes", None)


def learned(found: list[RankBatch], key: str, vocabulary: Vocabulary) -> str | None:
    """What the sample's document trains on, None where there is none."""
    for sequence in (s for batch in found for s in batch.sequences.values()):
        starts = np.cumsum([0, *sequence.lengths])
        for name, start, length in zip(sequence.names, starts, sequence.lengths, strict=False):
            if name.endswith(f"/{key}"):
                labels = sequence.labels[start : start + length]
                return str(vocabulary.tokenizer.decode(labels[labels >= 0], skip_special_tokens=True)).strip()
    return None


@pytest.mark.xfail(strict=True, raises=TypeError, reason="the tokenizer refuses it, and the reader ends")
def test_half_a_surrogate_pair_costs_one_sample_at_most(vocabulary: Vocabulary, tmp_path: Path) -> None:
    path = foreign_set(tmp_path / "set", 8, {3: {"captions": [{"text": "a red \ud83d circle", "weight": 1}]}})
    assert main(["data", "index", str(path)]) == 0
    config = job(path, "t2i", seq_len=128, unconditional=0.0)
    shards = ShardSet(path, codebook_size=1024)
    reader = SourceReader("s", config.data.sources["s"], shards, vocabulary.tokenizer, config.data, 1, 0)
    lost = 8 - len(reader.first(8))
    assert lost <= 1 and lost <= (reader.dropped + shards.bad).total()


# --- a server that fails for a while


@pytest.mark.xfail(strict=True, raises=AssertionError, reason="after four attempts a chunk's samples are lost")
def test_an_outage_costs_no_sample_and_changes_no_order(
    vocabulary: Vocabulary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("aiohttp", reason="fsspec reads http with aiohttp: pip install aiohttp")
    monkeypatch.setattr(remote, "BACKOFF_SECONDS", 0.001)
    image_set(tmp_path / "set", samples=600, per_shard=300)
    with RangeServer(tmp_path).running() as server:
        config = job(f"{server.url}/set", "t2i", max_epochs=1.0, seq_len=512, global_batch=4, streams=1, max_bad=1.0)
        undisturbed = names(batches(config, vocabulary))
        server.fail["/set/shard-00001.tar"] = [503] * 6
        found = batches(config, vocabulary)
    assert len(undisturbed) == 600 and not server.fail["/set/shard-00001.tar"]
    assert not found[-1].dropped and names(found) == undisturbed
