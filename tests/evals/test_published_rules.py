"""Scores of the published VQA benchmarks: equal to what the published programs gave, and by hand where there is
none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evals.questions.answer_normalizer import CONTRACTIONS, normal_textvqa, normal_vqav2
from evals.questions.published_rules import MMERow, gqa_scores, mme_scores, vqav2_accuracy
from evals.vqa import pope_scores, textvqa_accuracy

REFERENCE = Path(__file__).parents[1] / "reference"  # what the published evaluators gave


def test_textvqa_accuracy_equals_the_published_evaluator():
    rows = json.loads((REFERENCE / "vqa_accuracy.json").read_text(encoding="utf-8"))
    assert len(rows) == 60
    assert [normal_textvqa(r["prediction"]) for r in rows] == [r["normalized"] for r in rows]
    assert [textvqa_accuracy(r["prediction"], r["answers"]) for r in rows] == [
        pytest.approx(r["accuracy"], abs=1e-12) for r in rows
    ]


def test_pope_scores_equal_the_published_evaluator():
    reference = json.loads((REFERENCE / "pope.json").read_text(encoding="utf-8"))
    scores = pope_scores([r["prediction"] for r in reference["rows"]], [r["label"] for r in reference["rows"]])
    names = {
        "accuracy": "Accuracy",
        "precision": "Precision",
        "recall": "Recall",
        "f1": "F1 score",
        "yes_ratio": "Yes ratio",
    }
    assert scores == {ours: reference["metrics"][theirs] for ours, theirs in names.items()}


@pytest.mark.parametrize(
    ("answer", "textvqa", "vqav2"),
    [
        ("The dog's bowl", "dog 's bowl", "dog's bowl"),
        ("3,000", "3000", "3000"),  # TextVQA drops every comma first
        ("a,b", "ab", "b"),  # VQAv2 makes it a space, and then "a" is an article
        ("1,2-3", "12 3", "123"),  # with a comma between digits, marks vanish
        ("couldntve couldnt've", "couldntve couldn't've", "couldntve couldn't've"),
        ("somebody'd", "somebodyd", "somebodyd"),
        ("3.5 miles.", "3.5 miles", "3.5 miles"),
        ("None of the ten", "0 of 10", "0 of 10"),
    ],
)
def test_normal_forms(answer, textvqa, vqav2):
    assert (normal_textvqa(answer), normal_vqav2(answer)) == (textvqa, vqav2)


def test_every_contraction_is_found_from_each_spelling_without_one_apostrophe():
    assert CONTRACTIONS["hadnt've"] == CONTRACTIONS["hadn'tve"] == "hadn't've"
    assert CONTRACTIONS["twas"] == "'twas" and CONTRACTIONS["ow's'at"] == "'ow's'at"
    # words of their own
    assert "hadntve" not in CONTRACTIONS and "wed" not in CONTRACTIONS and "shell" not in CONTRACTIONS


def test_leave_one_out_counts_the_others():
    assert textvqa_accuracy("x", ["x"] * 10) == 1.0
    assert textvqa_accuracy("x", ["x"] * 3 + ["y"] * 7) == pytest.approx((3 * 2 / 3 + 7 * 1) / 10)
    with pytest.raises(ValueError, match="without answers"):
        textvqa_accuracy("x", [])


def test_vqav2_normalizes_only_where_people_disagree():
    assert vqav2_accuracy("Two", ["two"] * 10) == 0.0 and vqav2_accuracy("two", ["two\n"] * 10) == 1.0
    assert vqav2_accuracy("Two", ["two"] * 9 + ["3"]) == 1.0


def test_gqa_exact_match_and_by_kind():
    scores = gqa_scores(
        ["Yes.", "no", " table", "the table"], ["yes", "yes", "table", "table"], ["verify", "verify", "query", "query"]
    )
    assert scores == {"accuracy": 0.5, "binary": 0.5, "open": 0.5}
    assert gqa_scores(["red"], ["red"]) == {"accuracy": 1.0}


def test_mme_points_by_hand():
    rows = [
        MMERow("OCR", "1.png", "Yes", "Yes, it is"),
        MMERow("OCR", "1.png", "No", "no"),  # both right
        # the first four letters say nothing
        MMERow("OCR", "2.png", "Yes", "It is: yes"),
        MMERow("OCR", "2.png", "No", "No."),
        MMERow("code_reasoning", "a", "Yes", "no"),
        MMERow("code_reasoning", "a", "No", "yes"),
    ]
    assert mme_scores(rows) == {"OCR": 75.0 + 50.0, "code_reasoning": 0.0, "perception": 125.0, "cognition": 0.0}


def test_bad_labels_and_nothing_are_refused():
    with pytest.raises(ValueError, match="'maybe': must be yes or no"):
        pope_scores(["yes"], ["maybe"])
    with pytest.raises(ValueError, match="no questions"):
        pope_scores([], [])
    with pytest.raises(ValueError):
        pope_scores(["yes", "no"], ["yes"])
    assert pope_scores(["no"], ["no"])["f1"] == 0.0
