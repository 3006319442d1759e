"""What KEY.json may hold, alike for training, `verify` and `index`; what is odd is counted, and the first one named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.shard_set.writer import to_npy
from liquid_train.cli import main
from liquid_train.config.schema import TrainJob
from liquid_train.data.batch import RankBatch
from liquid_train.data.loader import BatchLoader
from liquid_train.data.settings import DataConfig, SourceConfig
from liquid_train.data.shard_format import DamagedSample, decode_sample, fields_of, group_files
from liquid_train.data.shards import ShardSet
from liquid_train.vocabulary import Vocabulary, train_bpe
from tests.source_files import tar

CODES = to_npy(np.arange(64, dtype=np.uint16).reshape(8, 8))
ABOVE_0 = "is no number above 0, or too large a one"


def captions(**caption: Any) -> dict[str, Any]:
    return {"captions": [{"text": "fine"}, {"text": "a", **caption}]}


def answers(value: Any) -> dict[str, Any]:
    return {"questions": [{"question": "fine?", "answers": ["yes"]}, {"question": "q?", "answers": value}]}


ODD: list[tuple[dict[str, Any], str]] = [
    ({"captions": ["a", "b"]}, "captions is no object"),
    ({"captions": [["a"]]}, "captions is no object"),
    ({"captions": {"en": "a"}}, "captions is no list"),
    ({"captions": "a"}, "captions is no list"),
    ({"captions": [{"weight": 1}]}, "captions.text is missing"),
    (captions(text=None), "captions.text is no text"),
    (captions(text=["a"]), "captions.text is no text"),
    (captions(text=""), "captions.text is blank"),
    (captions(text=" \n\u3000"), "captions.text is blank"),
    (captions(text="\0\ufeff"), "captions.text is blank"),
    *((captions(weight=w), f"captions.weight {ABOVE_0}") for w in (0, -1, True, "1", None, 10**400, 1e308)),
    *((captions(weight=w), f"captions.weight {ABOVE_0}") for w in (float("nan"), float("inf"))),
    ({"questions": {"q?": "a"}}, "questions is no list"),
    ({"questions": ["q?"]}, "questions is no object"),
    ({"questions": [{"question": "q?"}]}, "questions.answers is missing"),
    ({"questions": [{"question": None, "answers": ["a"]}]}, "questions.question is no text"),
    ({"questions": [{"question": " ", "answers": ["a"]}]}, "questions.question is blank"),
    (answers("yes"), "questions.answers is no list"),
    (answers(None), "questions.answers is no list"),
    (answers([]), "questions.answers is empty"),
    (answers([3]), "questions.answers is no text"),
    (answers([["a"]]), "questions.answers is no text"),
    (answers([""]), "questions.answers is blank"),
    ({"messages": "hello"}, "messages is no list"),
    ({"messages": [{"role": "user"}]}, "messages.content is missing"),
    ({"messages": [{"role": "user", "content": [{"text": "a"}]}]}, "messages.content is no text"),
    (
        {"messages": [{"role": "human", "content": "a"}]},
        "messages.role is none of system, developer, user, assistant, tool",
    ),
    ({"multiratio": "no"}, "multiratio is neither true nor false"),
    ({"multiratio": True, "width": None}, "width is no whole number"),
    ({"multiratio": True, "width": 64.0}, "width is no whole number"),
    ({"multiratio": True, "width": "64"}, "width is no whole number"),
    ({"multiratio": True, "height": True}, "height is no whole number"),
    ({"multiratio": True, "height": 0}, f"height {ABOVE_0}"),
]
FINE: list[dict[str, Any]] = [
    {"captions": None, "questions": None, "messages": None},
    {"captions": [], "questions": [], "messages": []},
    captions(weight=0.5) | {"width": 64.5, "height": "unknown"},  # nobody reads them
    {"captions": [{"text": "a", "weight": 3, "by": "a model"}], "url": None, "multiratio": False},
    {"messages": [{"role": "system", "content": ""}, {"role": "tool", "content": "x", "name": 3}], "multiratio": None},
    {"multiratio": True, "width": 64, "height": 8},
]


def sample(info: Any, **files: bytes) -> Any:
    content = info if isinstance(info, bytes) else json.dumps(info).encode()
    return decode_sample("k", {"codes.npy": CODES, "txt": b"a red circle", "json": content, **files}, 1024)


@pytest.mark.parametrize(("info", "reason"), ODD, ids=str)
def test_odd_fields_are_damage(info: dict[str, Any], reason: str) -> None:
    with pytest.raises(DamagedSample) as raised:
        sample({"width": 64, "height": 64} | info)
    assert str(raised.value) == f"json: {reason}"


@pytest.mark.parametrize("info", FINE, ids=str)
def test_fields_that_are_as_they_should_be(info: dict[str, Any]) -> None:
    assert sample(info)["info"] == info


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[]", "json is not an object"),
        (b"3", "json is not an object"),
        (b"NaN", "json is not an object"),
        (b'"captions"', "json is not an object"),
        (b"", "json does not parse"),
        (b'{"captions": [', "json does not parse"),
        (b'{"a": ' + b"9" * 5000 + b"}", "json does not parse"),
        (b'{"a": "\xff"}', "json does not parse"),
        (b'{"a": ' + b"[" * 10**5 + b"]" * 10**5 + b"}", "json is nested too deeply"),
        (b'{"b": "\\u0000", "a": ' + b"[" * 900 + b"]" * 900 + b"}", "json is nested too deeply"),
    ],
    ids=range(10),
)
def test_what_is_no_json_object(content: bytes, reason: str) -> None:
    with pytest.raises(DamagedSample) as raised:
        sample(content)
    assert str(raised.value) == reason


def test_texts_of_json_are_normalized_and_the_last_of_equal_keys_counts() -> None:
    info = sample(
        b'\xef\xbb\xbf{"captions": "x", "captions": [{"text": "\\ufeffhalf \\ud83d an\\u0000 emoji"}], '
        b'"questions": [{"question": "\\ud800?", "answers": ["\\u0000a"]}]}'
    )["info"]
    assert info["captions"] == [{"text": "half \ufffd an emoji"}]
    assert info["questions"] == [{"question": "\ufffd?", "answers": ["a"]}]


def test_files_decide_what_text_and_codes_a_sample_has() -> None:
    says = {"codes": "none", "text": 5, "ids": "a1", "messages": [{"role": "user", "content": "a <image>"}]}
    fields = fields_of(decode_sample("k", {"json": json.dumps(says).encode()}))
    assert not {"codes", "text", "ids"} & fields.keys() and fields["messages"] == says["messages"]
    assert fields_of(sample(says))["text"] == "a red circle" and "ids" not in fields_of(sample(says))


def test_a_file_that_stands_twice_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    tar(path, [("a.txt", b"one"), ("a.json", b"{}"), ("a.txt", b"two"), ("b.txt", b"b"), ("b.json", b"{}")])
    groups = group_files(path.read_bytes())
    with pytest.raises(DamagedSample, match="a file of the sample stands twice"):
        decode_sample("a", groups["a"])
    assert decode_sample("b", groups["b"])["text"] == "b"


# --- all of them in one set


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    tokenizer = train_bpe(["a teal circle? red blue yes no"], 300, tmp_path_factory.mktemp("bpe"))
    tokenizer.chat_template = "{% for m in messages %}<bos>{{ m['role'] }}\n{{ m['content'] }}<|endoftext|>{% endfor %}"
    return Vocabulary(tokenizer, 1024, len(tokenizer) + 1024)


@pytest.fixture(scope="module")
def odd_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 captioned images with a question and a chat, as another program writes them; every second one is odd, as far
    as there are odd ones."""
    folder = tmp_path_factory.mktemp("odd")
    members: list[tuple[str, bytes]] = []
    for n in range(100):
        says = {
            "width": 64,
            "height": 64,
            "questions": [{"question": "a circle?", "answers": ["yes"]}],
            "messages": [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "red"}],
        }
        if n % 2 and n // 2 < len(ODD):
            says |= ODD[n // 2][0]
        files = {"codes.npy": CODES, "json": json.dumps(says).encode(), "txt": b"a red circle"}
        members += [(f"{n:06d}.{kind}", content) for kind, content in files.items()]
    tar(folder / "shard-00000.tar", members)
    return folder


GOOD = {f"{n:06d}" for n in range(100) if not (n % 2 and n // 2 < len(ODD))}


def test_index_counts_them_and_names_the_first(odd_set: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert main(["data", "index", str(odd_set)]) == 0
    said = [record.getMessage() for record in caplog.records]
    assert sum("captions.weight" in line and "sample 000021" in line for line in said) == 1
    assert not any("sample 000023" in line for line in said)  # of the same kind
    totals = json.loads((odd_set / "index.json").read_text())["totals"]
    assert totals == {"samples": 100, "images": len(GOOD), "texts": 0}


@pytest.mark.parametrize("task", ["t2i", "i2t", "vqa", "chat"])
def test_training_leaves_them_out_and_counts_each_once(odd_set: Path, vocabulary: Vocabulary, task: str) -> None:
    shards = ShardSet(odd_set, codebook_size=1024)
    config = TrainJob(
        data=DataConfig({"s": SourceConfig(str(odd_set), task, max_epochs=2.0)}, workers=0, seq_len=128, global_batch=2)
    )
    found: list[RankBatch] = []
    for batch in BatchLoader(config.data, 0, {"s": shards}, vocabulary, rank=0, world=1, first_step=0, steps=10**6):
        found.append(batch)
        if batch.ended:
            break
    names = [name for batch in found for s in batch.sequences.values() for name in s.names]
    assert sorted(names) == sorted(2 * [f"s/{key}" for key in GOOD])
    assert shards.bad.total() == len(ODD) and shards.bad["json: captions.weight " + ABOVE_0] == 9


def test_verify_names_them(odd_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "verify", str(odd_set)]) == 1
    out = capsys.readouterr().out
    assert "000001: json: captions is no object" in out and "questions.answers is no list: 2" in out
