"""Questions that a shard set carries. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evals.easy_vqa.detect import answer_type as easy_vqa_type
from evals.easy_vqa.detect import is_easy_vqa
from evals.errors import NotMeasurable
from liquid_train.data.shards import ShardSet


@dataclass(frozen=True)
class Question:
    """image: number of its image in the set. kind: told by the answer."""

    image: int
    text: str
    answers: tuple[str, ...]
    kind: str


@dataclass(frozen=True)
class QuestionSet:
    """codes: one grid an image. left_out: damaged samples by reason."""

    codes: list[np.ndarray]
    questions: list[Question]
    left_out: dict[str, int]


def load_questions(shards: ShardSet, max_images: int | None = None) -> QuestionSet:
    """The questions of the first max_images samples (None: of all). Raises NotMeasurable when they have none."""
    kind = easy_vqa_type if is_easy_vqa(shards) else answer_type
    codes: list[np.ndarray] = []
    questions: list[Question] = []
    for number in range(shards.num_samples if max_images is None else min(max_images, shards.num_samples)):
        sample = shards.sample(number)
        asked = sample["info"].get("questions") if sample is not None and "codes" in sample else None
        if sample is None or not asked:
            continue
        for q in asked:
            answers = tuple(q["answers"])
            questions.append(Question(len(codes), q["question"], answers, kind(answers[0])))
        codes.append(sample["codes"])
    if not questions:
        raise NotMeasurable(
            f"{shards.path}: its samples carry no questions; give a shard set made from a source with questions"
        )
    return QuestionSet(codes, questions, dict(shards.bad))


def answer_type(answer: str) -> str:
    """yes/no, number or other: VQAv2's kinds, told by the answer."""
    text = answer.strip().lower()
    if text in ("yes", "no"):
        return "yes/no"
    return "number" if text.replace(".", "", 1).isdecimal() else "other"
