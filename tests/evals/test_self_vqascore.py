"""How probable a model finds an answer, and what is made of it: captions told apart, scores by tag."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from evals.easy_vqa.captions import caption_pairs
from evals.judges import self_judge
from evals.judges.answer_probability import answer_probabilities
from evals.judges.caption_pairs import CaptionPairs
from evals.judges.caption_parts import questions_about
from evals.metrics.captions import area, tell_captions
from evals.metrics.self_vqascore import GeneratedTexts, score_generated
from liquid_train.config.compose import load
from liquid_train.data.sequence_pieces import encode_text
from liquid_train.data.sequences import prompt_ids
from liquid_train.data.shards import ShardSet
from liquid_train.data.tasks.vqa import question_ids
from liquid_train.measurement.measurement import ModelHandle
from liquid_train.measurement.settings import QuestionPart, VQAScoreConfig
from tests.shard_sets import image_set, text_set
from tests.tiny_model import tiny, vq

CODES = [np.random.default_rng(n).integers(0, 1024, (2, 3)) for n in range(3)]


@pytest.fixture(scope="module")
def handle(tmp_path_factory) -> ModelHandle:
    model, vocabulary = tiny(tmp_path_factory.mktemp("model"))
    return ModelHandle(model, vocabulary, vq(), (2, 3), "")


@pytest.mark.parametrize("architecture", ["qwen2", "gemma2"])
def test_answer_probabilities_equal_a_plain_forward_pass(tmp_path, architecture):
    model, vocabulary = tiny(tmp_path, architecture)
    items = [(CODES[0], "is there a triangle?"), (CODES[1], "what color is the shape?"), (CODES[0], "what?")]
    answers = ["yes", "no", "a teal rectangle"]
    shares = [answers, answers[:1], ["no", "a teal rectangle", "a teal circle"]]
    found = answer_probabilities(
        model, vocabulary, [(*item, own) for item, own in zip(items, shares, strict=True)], batch_size=2
    )
    for (codes, question), own, row in zip(items, shares, found, strict=True):
        assert row.shape == (len(own),)
        for answer, probability in zip(own, row, strict=True):
            head = prompt_ids({"codes": codes}, "vqa", vocabulary.tokenizer) + question_ids(
                question, vocabulary.tokenizer
            )
            target = encode_text(vocabulary.tokenizer, " " + answer)
            with torch.no_grad():
                logits = model(torch.tensor([head + target])).logits[0, :, : vocabulary.text_size].double()
            chances = logits.log_softmax(-1)[range(len(head) - 1, len(head) + len(target) - 1), target]
            assert probability == pytest.approx(float(chances.sum().exp()), rel=1e-3)


def test_area_under_the_curve_by_hand():
    assert area(np.array([3.0, 4.0]), np.array([1.0, 2.0])) == 1.0 and area(np.array([1.0]), np.array([2.0])) == 0.0
    assert area(np.array([1.0, 3.0]), np.array([2.0, 3.0])) == (0 + 0 + 1 + 0.5) / 4
    assert area(np.ones(5), np.ones(4)) == 0.5


def test_the_image_decides_about_the_score_and_the_question_is_config(handle):
    config = VQAScoreConfig('Is "{text}" there?', "yes", 2)
    data = GeneratedTexts(
        CODES, ["a red circle"] * 3, [["basic"], ["basic", "color"], []], [4, 5, 6], {"guidance": 1.0}
    )
    measured = score_generated(handle, data, config)
    single = answer_probabilities(
        handle.model, handle.vocabulary, [(c, 'Is "a red circle" there?', ["yes"]) for c in CODES]
    )
    single = np.concatenate(single)
    assert measured.values["self_vqascore"].value == pytest.approx(single.mean(), rel=1e-6)
    assert measured.values["self_vqascore/basic"].value == pytest.approx(single[:2].mean(), rel=1e-6)
    assert measured.values["self_vqascore/color"].n == 1 and len(set(single)) == 3
    assert measured.provenance.seeds == "4 to 6" and 'Is "{text}" there?' in str(measured.provenance.features)


def test_captions_are_told_apart_by_the_score(handle, monkeypatch):
    def judge(handle, codes, texts, config, what):
        return np.array([[0.9 if "red" in text else 0.2 + n / 100 for text in row] for n, row in enumerate(texts)])

    monkeypatch.setattr(self_judge, "scores", judge)
    pairs = CaptionPairs(
        CODES, {"color": (["a red shape"] * 3, ["a blue shape"] * 3), "shape": (["a box"] * 3, ["a disc"] * 3)}
    )
    values = tell_captions(handle, pairs, VQAScoreConfig()).values
    assert values["caption_auc/color"].value == 1.0 and values["caption_auc/shape"].value == 0.5
    assert values["self_vqascore_right/color"].value == pytest.approx(0.9) and values[
        "self_vqascore_wrong/color"
    ].value == pytest.approx(0.21)


PARTS = VQAScoreConfig(
    "is there {text}?",
    "yes",
    4,
    r"\b(?P<color>red|teal)\b|\b(?P<shape>circle|triangle)\b",
    [QuestionPart("what color is the shape?", "{color}"), QuestionPart("what is the {color} shape?", "{shape}")],
)


def test_texts_are_asked_by_the_parts_that_they_have():
    color, shape = ("what color is the shape?", "teal"), ("what is the teal shape?", "circle")
    assert (
        questions_about("a teal circle", PARTS)
        == [color, shape]
        == questions_about("a circle that is teal, not red", PARTS)
    )
    assert questions_about("a teal shape", PARTS) == [color]
    for text in ("a circle", "a redder box", "{color}"):  # the question about the shape names the colour
        assert (
            questions_about(text, PARTS)
            == [(f"is there {text}?", "yes")]
            == questions_about(text, VQAScoreConfig("is there {text}?", "yes"))
        )


def test_the_score_is_the_geometric_mean_over_the_parts(handle, monkeypatch):
    items = [
        (CODES[0], "what color is the shape?", ["red"]),
        (CODES[0], "what is the red shape?", ["circle"]),
        (CODES[1], "is there a box?", ["yes"]),
    ]
    color, shape, whole = (float(p[0]) for p in answer_probabilities(handle.model, handle.vocabulary, items))
    data = GeneratedTexts(CODES[:2], ["a red circle", "a box"], [["parts"], ["whole"]], [0, 1], {"guidance": 1.0})
    measured = score_generated(handle, data, PARTS)
    assert measured.values["self_vqascore/parts"].value == pytest.approx((color * shape) ** 0.5, rel=1e-4)
    assert measured.values["self_vqascore/whole"].value == pytest.approx(whole, rel=1e-4)
    assert len(measured.warnings) == 1 and "in 1 of 2 texts, such as 'a box'" in measured.warnings[0]
    for part in (PARTS.question, PARTS.answer, PARTS.pattern, "what is the {color} shape?", "{shape}"):
        assert repr(part) in str(measured.provenance.features)
    rows = []
    monkeypatch.setattr(
        "evals.judges.answer_probability.answer_probabilities",
        lambda m, v, items, **_: rows.extend(items) or [np.full(len(a), 0.5) for *_, a in items],
    )
    pairs = CaptionPairs(
        CODES,
        {
            "color": (["a red circle"] * 3, ["a teal circle"] * 3),
            "shape": (["a red circle"] * 3, ["a red triangle"] * 3),
        },
    )
    assert tell_captions(handle, pairs, PARTS).values["caption_auc/shape"].value == 0.5
    # each question once an image, whatever number of captions it is about
    assert [(q, a) for codes, q, a in rows if codes is CODES[1]] == [
        ("what color is the shape?", ["red", "teal"]),
        ("what is the red shape?", ["circle", "triangle"]),
        ("what is the teal shape?", ["circle"]),
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("pattern=(", r"vqascore.pattern=\(: not a regular expression"),
        (
            "parts=[{question: 'what {size} is it?', answer: '{color}'}]",
            "vqascore.parts.0..question=what {size} is it.: size: no group of .*pattern",
        ),
        ("parts=[{question: 'what is it?', answer: '{color'}]", "vqascore.parts.0..answer={color: "),
        ("parts=[{question: 'is it red?', answer: 'yes'}]", "vqascore.parts.0.: names no group"),
        ("parts=[{question: 'what is it?'}]", "vqascore.parts.0..answer is empty"),
        ("parts=[]", "0 vqascore.parts: give both, or neither"),
        ("question='is it there?'", "must hold {text}"),
    ],
)
def test_templates_that_do_not_fit_the_pattern_are_refused(override, message):
    with pytest.raises(ValueError, match=message):
        load("eval", ["checkpoint=x", "vqascore=easy_vqa", f"vqascore.{override}"])
    with pytest.raises(ValueError, match=message.replace(" vqascore", r" evals.vqascore")):
        load("train", ["experiment=quickstart", f"evals.vqascore.{override}"])


def test_the_quickstart_asks_what_its_training_asks():
    pytest.importorskip("easy_vqa")
    from data_prep.sources.easy_vqa import COLORS, SHAPES, load_split

    config = load("train", ["experiment=quickstart"]).evals.vqascore
    asked = {(question, answer) for image in load_split("train") for question, answer in image.questions}
    for color in COLORS:
        for shape in SHAPES:
            own = questions_about(f"a {color} {shape}", config)
            assert len(own) == 2 and set(own) <= asked


def test_wrong_captions_are_wrong_in_one_thing(tmp_path: Path):
    pairs = caption_pairs(ShardSet(image_set(tmp_path / "images", samples=12)), 10, seed=0)
    assert len(pairs.codes) == 10
    for right, wrong in zip(*pairs.cases["full_caption_color"], strict=True):
        assert right.split()[2] == wrong.split()[2] and right.split()[1] != wrong.split()[1]
    for right, wrong in zip(*pairs.cases["full_caption_shape"], strict=True):
        assert right.split()[1] == wrong.split()[1] and right.split()[2] != wrong.split()[2]
    assert pairs.cases["color"][0][:3] == ["a red shape", "a blue shape", "a teal shape"]
    assert (
        pairs.cases
        == caption_pairs(ShardSet(tmp_path / "images"), 10, seed=0).cases
        != caption_pairs(ShardSet(tmp_path / "images"), 10, seed=1).cases
    )
    with pytest.raises(ValueError, match="no caption there names a colour and a shape"):
        caption_pairs(ShardSet(text_set(tmp_path / "texts", samples=3)), 10, seed=0)
