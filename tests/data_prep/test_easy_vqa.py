"""Captions that are derived from questions and answers."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data_prep.sources._easy_vqa_wordings import questions
from data_prep.sources.easy_vqa import COLORS, SHAPES, answer_type, derive, read_answers

IMAGE = Path("picture.png")


@pytest.mark.parametrize(
    ("questions", "color"),
    [
        ([("what color is the shape?", "blue")], "blue"),
        ([("is there a teal shape?", "yes")], "teal"),
        ([("what is the gray shape?", "circle")], "gray"),  # the question itself tells it
        ([("is there not a red shape in the image?", "no")], "red"),  # not absent: present
        ([("is no green shape present?", "yes")], None),  # seven colours are left
        ([(f"is there a {c} shape?", "no") for c in COLORS if c != "brown"], "brown"),  # elimination
        ([(f"does the image not contain a {c} shape?", "yes") for c in COLORS if c != "black"], "black"),
        ([("what shape is present?", "circle")], None),
    ],
)
def test_color_is_derived(questions, color):
    assert derive(questions, COLORS) == color


@pytest.mark.parametrize(
    ("questions", "shape"),
    [
        ([("what shape is in the image?", "triangle")], "triangle"),
        ([("what color is the circle?", "red")], "circle"),
        ([("is there a circle?", "no"), ("is there not a triangle?", "yes")], "rectangle"),
        ([("is there a circle?", "no")], None),
        ([("is there a red shape?", "yes")], None),
    ],
)
def test_shape_is_derived(questions, shape):
    assert derive(questions, SHAPES) == shape


def test_contradicting_answers_are_refused_and_become_the_image_s_problem():
    questions = [("what color is the shape?", "blue"), ("is there a blue shape?", "no")]
    with pytest.raises(ValueError, match="contradicting"):
        derive(questions, COLORS)
    image = read_answers(7, IMAGE, questions)
    assert image.problem == "contradicting answers" and image.caption is None and image.captions == []


def test_captions_are_wordings_of_color_and_shape_with_the_plainest_the_likeliest():
    image = read_answers(0, IMAGE, [("what color is the shape?", "blue"), ("is a rectangle present?", "yes")])
    assert image.caption == "a blue rectangle"
    captions = dict(image.captions)
    assert {"blue rectangle", "a rectangle that is blue", "a picture of a blue rectangle"} < set(captions)
    assert max(captions, key=captions.__getitem__) == "a blue rectangle"
    assert sum(captions.values()) == pytest.approx(1)
    assert "A BLUE RECTANGLE" in captions
    assert all("blue" in text.lower() and "rectangle" in text.lower() for text in captions)


def test_open_color_means_no_caption():
    image = read_answers(0, IMAGE, [("what shape is present?", "circle"), ("is there a red shape?", "no")])
    assert image.shape == "circle" and image.color is None and image.caption is None and image.problem is None


def test_answer_types():
    assert [answer_type(a) for a in ("teal", "circle", "yes", "no")] == ["color", "shape", "yes/no", "yes/no"]


@pytest.mark.parametrize(
    ("split", "images", "captions", "questions"), [("train", 4000, 3578, 38575), ("test", 1000, 888, 9673)]
)
def test_the_package_s_splits(split, images, captions, questions):
    pytest.importorskip("easy_vqa")
    from data_prep.sources.easy_vqa import load_split

    pixels = load_split(split)
    assert len(pixels) == images == len({p.path for p in pixels})
    assert Counter(bool(p.caption) for p in pixels)[True] == captions
    assert sum(len(p.questions) for p in pixels) == questions
    assert all(p.path.is_file() for p in pixels[:5]) and not any(p.problem for p in pixels)


def test_unknown_split_is_refused():
    from data_prep.sources.easy_vqa import load_split

    with pytest.raises(ValueError, match="tokenize.split=valid: easy_vqa has train and test"):
        load_split("valid")


def test_a_varied_copy_is_asked_in_other_words():
    """Yes at least every fourth time for every word, few questions negated, answers that agree with the image."""
    asked = Counter()
    for number in range(3000):
        color, shape = COLORS[number % 8], SHAPES[number % 3]
        for question, answer in questions(color, shape, np.random.default_rng(number)):
            words = re.findall("[a-z]+", question.lower())
            if answer in ("yes", "no"):
                (word,) = {*words} & {*COLORS, *SHAPES}
                negated = bool({*words} & {"not", "no"})
                assert (answer == "yes") == ((word in (color, shape)) != negated), (question, color, shape)
                asked[word, (answer == "yes") != negated] += 1
                asked["negated"] += negated
            else:
                assert answer in (color, shape) and answer not in words, question
            asked["all"] += 1
            asked["shouted"] += question.isupper()
    for word in (*COLORS, *SHAPES):
        there, not_there = asked[word, True], asked[word, False]
        assert 0.25 < there / (there + not_there) < 0.75, (word, there, not_there)
    times = {word: asked[word, True] + asked[word, False] for word in (*COLORS, *SHAPES)}
    assert times["circle"] > 2 * times["triangle"] and times["red"] > 4 * times["teal"], times
    assert 0.02 < asked["negated"] / asked["all"] < 0.08 and 0.01 < asked["shouted"] / asked["all"] < 0.06


def test_what_is_not_known_of_an_image_is_not_asked():
    random = np.random.default_rng(0)
    assert questions(None, None, random) == []
    words = {w for q, _ in questions(None, "circle", random) for w in re.findall("[a-z]+", q.lower())}
    assert not words & set(COLORS) and words & set(SHAPES)
    words = {w for q, _ in questions("red", None, random) for w in re.findall("[a-z]+", q.lower())}
    assert not words & set(SHAPES) and words & set(COLORS)
