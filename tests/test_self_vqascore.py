"""How probable a model finds an answer, and what is made of it: captions told apart, scores by tag."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from evals import self_vqascore
from evals.answer_probability import answer_probabilities
from evals.measurement import ModelHandle
from evals.self_vqascore import CaptionPairs, DrawnTexts, area, score_drawn, tell_captions
from evals.wrong_captions import caption_pairs
from liquid_train.data.sequences import encode_text, prompt_ids, question_ids
from liquid_train.data.shards import ShardSet
from liquid_train.eval_settings import VQAScoreConfig
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
    found = answer_probabilities(model, vocabulary, items, answers, batch_size=2)
    assert found.shape == (3, 3)
    for (codes, question), row in zip(items, found, strict=True):
        for answer, probability in zip(answers, row, strict=True):
            head = prompt_ids({"codes": codes}, "vqa", vocabulary.tokenizer) + question_ids(question, vocabulary.tokenizer)
            target = encode_text(vocabulary.tokenizer, " " + answer)
            with torch.no_grad():
                logits = model(torch.tensor([head + target])).logits[0, :, : vocabulary.text_size].double()
            chances = logits.log_softmax(-1)[range(len(head) - 1, len(head) + len(target) - 1), target]
            assert probability == pytest.approx(float(chances.sum().exp()), rel=1e-3)


def test_area_under_the_curve_by_hand():
    assert area(np.array([3.0, 4.0]), np.array([1.0, 2.0])) == 1.0 and area(np.array([1.0]), np.array([2.0])) == 0.0
    assert area(np.array([1.0, 3.0]), np.array([2.0, 3.0])) == (0 + 0 + 1 + 0.5) / 4
    assert area(np.ones(5), np.ones(4)) == 0.5


def test_the_picture_decides_about_the_score_and_the_question_is_config(handle):
    config = VQAScoreConfig('Is "{text}" there?', "yes", 2)
    data = DrawnTexts(CODES, ["a red circle"] * 3, [["basic"], ["basic", "color"], []], [4, 5, 6], {"guidance": 1.0})
    measured = score_drawn(handle, data, config)
    single = answer_probabilities(handle.model, handle.vocabulary, [(c, 'Is "a red circle" there?') for c in CODES], ["yes"])[:, 0]
    assert measured.values["self_vqascore"].value == pytest.approx(single.mean(), rel=1e-6)
    assert measured.values["self_vqascore/basic"].value == pytest.approx(single[:2].mean(), rel=1e-6)
    assert measured.values["self_vqascore/color"].n == 1 and len(set(single)) == 3
    assert measured.receipt.seeds == "4 to 6" and 'Is "{text}" there?' in str(measured.receipt.features)


def test_captions_are_told_apart_by_the_score(handle, monkeypatch):
    def judge(handle, codes, texts, config, what):
        return np.array([0.9 if "red" in text else 0.2 + n / 100 for n, text in enumerate(texts)])

    monkeypatch.setattr(self_vqascore, "scores", judge)
    pairs = CaptionPairs(CODES, {"color": (["a red shape"] * 3, ["a blue shape"] * 3), "shape": (["a box"] * 3, ["a disc"] * 3)})
    values = tell_captions(handle, pairs, VQAScoreConfig()).values
    assert values["caption_auc/color"].value == 1.0 and values["caption_auc/shape"].value == 0.5
    assert values["self_vqascore_right/color"].value == pytest.approx(0.9) and values["self_vqascore_wrong/color"].value == pytest.approx(0.21)


def test_wrong_captions_are_wrong_in_one_thing(tmp_path: Path):
    pairs = caption_pairs(ShardSet(image_set(tmp_path / "images", samples=12)), 10, seed=0)
    assert len(pairs.codes) == 10
    for right, wrong in zip(*pairs.cases["full_caption_color"], strict=True):
        assert right.split()[2] == wrong.split()[2] and right.split()[1] != wrong.split()[1]
    for right, wrong in zip(*pairs.cases["full_caption_shape"], strict=True):
        assert right.split()[1] == wrong.split()[1] and right.split()[2] != wrong.split()[2]
    assert pairs.cases["color"][0][:3] == ["a red shape", "a blue shape", "a teal shape"]
    assert pairs.cases == caption_pairs(ShardSet(tmp_path / "images"), 10, seed=0).cases != caption_pairs(ShardSet(tmp_path / "images"), 10, seed=1).cases
    with pytest.raises(ValueError, match="no caption there names a colour and a shape"):
        caption_pairs(ShardSet(text_set(tmp_path / "texts", samples=3)), 10, seed=0)
