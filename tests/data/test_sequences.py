"""Documents against the published collator's, id for id."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from liquid_train.data.sequence_pieces import BadSample
from liquid_train.data.sequences import build_sequence
from liquid_train.data.tasks.i2t import CAPTION_LEAD
from liquid_train.vocabulary import Vocabulary, load_tokenizer, train_bpe

REFERENCE = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "sequence_reference"


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    return Vocabulary(
        train_bpe(["a red circle", "what color?", CAPTION_LEAD], 290, tmp_path_factory.mktemp("bpe")), 1024, 290 + 1024
    )


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="no reference data next to this checkout")
def test_equal_to_the_published_collator() -> None:
    """The records' ids all hold the default suffix, whatever their `prompt` field says: the suffix is read off the
    ids."""
    tokenizer = load_tokenizer(REFERENCE / "tokenizer")
    records = json.loads((REFERENCE / "sequences.json").read_text())["records"]
    assert len(records) == 30
    for r in records:
        sample = {"text": r.get("caption", r.get("text")), "codes": np.array(r.get("codes", []))}
        ids, labels = build_sequence(
            sample, r["task"], tokenizer, unconditional=r.get("unconditional", False), append_eos=r["task"] != "text"
        )
        assert ids.tolist() == r["input_ids"] and labels.tolist() == r["labels"]
        assert ids.dtype == labels.dtype == np.int64


def test_where_the_loss_is(vocabulary: Vocabulary) -> None:
    tokenizer = vocabulary.tokenizer
    sample = {"text": "a red circle", "codes": np.arange(6).reshape(2, 3), "question": "what color?", "answer": "red"}
    image = list(range(vocabulary.image_start, vocabulary.image_start + 6))

    ids, labels = build_sequence(sample, "t2i", tokenizer)
    assert [i for i in labels if i != -100] == [*image, vocabulary.eoi, vocabulary.eos]
    assert (
        tokenizer.decode(ids[1 : list(ids).index(vocabulary.boi)])
        == "a red circle Generate an image based on this description."
    )

    ids, labels = build_sequence(sample, "t2i", tokenizer, unconditional=True)
    assert ids.tolist()[1:3] == [vocabulary.unconditional, vocabulary.boi]

    ids, labels = build_sequence(sample, "vqa", tokenizer)
    assert tokenizer.decode([i for i in labels if i != -100]) == " red<|endoftext|>"
    assert tokenizer.decode(ids[9:]) == "\nwhat color? red<|endoftext|>"

    turns = {**sample, "turns": [("what color?", "red"), ("a circle?", "yes")]}
    ids, labels = build_sequence(turns, "vqa", tokenizer)
    assert tokenizer.decode(ids[9:]) == "\nwhat color? red\na circle? yes<|endoftext|>"
    assert tokenizer.decode([i for i in labels if i != -100]) == " red yes<|endoftext|>"


def test_multiratio_images_say_their_size(vocabulary: Vocabulary) -> None:
    sample = {"text": "a cat", "codes": np.zeros((2, 3), int), "multiratio": True, "width": 768, "height": 512}
    ids, _ = build_sequence(sample, "t2i", vocabulary.tokenizer, prompt=" Draw.")
    assert (
        vocabulary.tokenizer.decode(ids[1 : list(ids).index(vocabulary.boi)])
        == "a cat Image Size: Width is 768 Height is 512. Draw."
    )
    ids, _ = build_sequence(sample, "t2i", vocabulary.tokenizer, unconditional=True)
    assert (
        vocabulary.tokenizer.decode(ids[1 : list(ids).index(vocabulary.boi)])
        == " Image Size: Width is 768 Height is 512.<unconditional>"
    )


def test_a_caption_cannot_spell_a_special_token(vocabulary: Vocabulary) -> None:
    ids, _ = build_sequence({"text": "<|endoftext|> <boi>", "codes": np.zeros(2, int)}, "t2i", vocabulary.tokenizer)
    assert list(ids).count(vocabulary.boi) == 1 and list(ids).count(vocabulary.eos) == 1


def test_unknown_task(vocabulary: Vocabulary) -> None:
    with pytest.raises(ValueError, match="task=speech"):
        build_sequence({"text": "x"}, "speech", vocabulary.tokenizer)


TEMPLATE = "{% for m in messages %}<bos>{{ m['role'] }}\n{{ m['content'] | trim }}<|endoftext|>\n{% endfor %}"


def test_chat_has_its_loss_on_what_the_assistant_says(vocabulary: Vocabulary) -> None:
    """The template's own tokens are control tokens, those that a message spells are not; the image stands where it is
    named."""
    tokenizer = deepcopy(vocabulary.tokenizer)
    tokenizer.chat_template = TEMPLATE
    messages = [
        {"role": "user", "content": "look: <image> a circle <bos>?"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "red?"},
        {"role": "assistant", "content": " no <bos>"},
    ]
    sample = {"messages": messages, "codes": np.arange(6).reshape(2, 3)}
    ids, labels = build_sequence(sample, "chat", tokenizer)
    text = [i for i in ids if i < vocabulary.image_start]
    turns = ["user\nlook: <boi><eoi> a circle <bos>?", "assistant\nyes", "user\nred?", "assistant\nno <bos>"]
    assert tokenizer.decode(text) == "".join(f"<bos>{turn}<|endoftext|>\n" for turn in turns)
    assert [i for i in ids if i >= vocabulary.image_start] == list(
        range(vocabulary.image_start, vocabulary.image_start + 6)
    )
    assert tokenizer.decode([i for i in labels if i != -100]) == "yes<|endoftext|>no <bos><|endoftext|>"
    assert list(ids).count(tokenizer.bos_token_id) == 4 and list(ids).count(vocabulary.boi) == 1


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([{"role": "user", "content": "no place for it"}], "0 times <image> for 1 images"),
        ([{"role": "user"}], "messages.content is missing"),
        ("hello", "messages is no list"),
    ],
)
def test_messages_that_cannot_be_used(vocabulary: Vocabulary, messages: object, says: str) -> None:
    tokenizer = deepcopy(vocabulary.tokenizer)
    tokenizer.chat_template = TEMPLATE
    with pytest.raises(BadSample, match=says):
        build_sequence({"messages": messages, "codes": np.zeros(2, int)}, "chat", tokenizer)


def test_chat_needs_a_template(vocabulary: Vocabulary) -> None:
    with pytest.raises(ValueError, match="task=chat: the tokenizer has no chat template"):
        build_sequence({"messages": [{"role": "user", "content": "hello"}]}, "chat", vocabulary.tokenizer)


HALF = "\ud83d"  # of an emoji


@pytest.mark.parametrize(
    ("task", "sample"),
    [
        ("text", {"text": "a \ud83d"}),
        ("t2i", {"text": "a \ud83d"}),
        ("i2t", {"text": "a \ud83d"}),
        ("vqa", {"question": "a \ud83d", "answer": "b \ud83d"}),
        ("chat", {"messages": [{"role": "user", "content": "<image>a \ud83d"}, {"role": "assistant", "content": "b"}]}),
    ],
)
def test_every_text_is_normalized(vocabulary: Vocabulary, task: str, sample: dict[str, Any]) -> None:
    """Half an emoji, a NUL and a BOM where a text begins, alone or after what the task puts before it."""

    def sequence(half: str, nul: str, bom: str) -> list[int]:
        def said(value: Any) -> Any:
            if isinstance(value, list):
                return [{**m, "content": said(m["content"])} for m in value]
            return value.replace("a ", f"{bom}a {nul}").replace("b ", f"{bom}b ").replace(HALF, half)

        fields = {name: said(value) for name, value in sample.items()}
        return list(build_sequence({"codes": np.zeros((2, 2), int), **fields}, task, tokenizer)[0])

    tokenizer = deepcopy(vocabulary.tokenizer)
    tokenizer.chat_template = TEMPLATE
    assert sequence(HALF, "\0", "\ufeff") == sequence("\ufffd", "", "")
