"""Scores of the published VQA benchmarks, from answers that were given and answers that are right. Pure functions of
text.

TextVQA and VQAv2: ten people's answers a question; an answer that three others gave is right (Antol et al. 2015, Singh
et al. 2019).
GQA: one answer (Hudson and Manning 2019). POPE: is the object there, yes or no (Li et al. 2023). MME: yes or no, two
questions an image (Fu et al. 2023). Every function equals the program that the benchmark's tables were made with, its
oddities included.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from evals.questions.answer_normalizer import normal_textvqa, normal_vqav2, one_line
from liquid_train.errors import UserError

NEEDED = 3  # other people who gave the answer
PERCEPTION = ("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


def leave_one_out(given: str, answers: Sequence[str]) -> float:
    """Mean over the answers of min(1, how many of the others equal `given` / 3). Raises ValueError without answers."""
    if not answers:
        raise ValueError("a question without answers has no accuracy; leave it out and count it")
    same = [answer == given for answer in answers]
    return sum(min(1.0, (sum(same) - own) / NEEDED) for own in same) / len(same)


def textvqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Share in 0..1 of one prediction against (ten) people's answers, by the TextVQA rule."""
    return leave_one_out(normal_textvqa(prediction), [normal_textvqa(a) for a in answers])


def vqav2_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Share in 0..1 by the VQAv2 rule, which normalizes only where people disagree."""
    plain, given = [one_line(a) for a in answers], one_line(prediction)
    if len(set(plain)) > 1:
        return leave_one_out(normal_vqav2(given), [normal_vqav2(a) for a in plain])
    return leave_one_out(given, plain)


def gqa_scores(
    predictions: Sequence[str], answers: Sequence[str], structural: Sequence[str] | None = None
) -> dict[str, float]:
    """{"accuracy", and with the questions' structural types "binary", "open"}: exact match but for case and a final
    period.

    structural: types.structural of GQA's question file; questions of type query are open, the others (verify, choose,
    ...) binary.
    """
    right = [p.strip().rstrip(".").lower() == a for p, a in zip(predictions, answers, strict=True)]
    scores = {"accuracy": mean(right)}
    if structural is not None:
        for name, is_open in (("open", True), ("binary", False)):
            part = [r for r, kind in zip(right, structural, strict=True) if (kind == "query") is is_open]
            if part:
                scores[name] = mean(part)
    return scores


def pope_says_yes(text: str) -> bool:
    """Unless the first sentence has the word No, no or not: as the published evaluator reads an answer."""
    return not {"No", "no", "not"} & set(text.split(".")[0].replace(",", "").split(" "))


def pope_scores(predictions: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """accuracy, precision, recall and f1 of "yes", and yes_ratio, all in 0..1.

    predictions: free text. labels: "yes" or "no". precision, recall and f1 are 0 where they have nothing to divide by.
    """
    said = [pope_says_yes(p) for p in predictions]
    true = [label_is_yes(label) for label in labels]
    hits = sum(s and t for s, t in zip(said, true, strict=True))
    precision, recall = ratio(hits, sum(said)), ratio(hits, sum(true))
    return {
        "accuracy": mean([s == t for s, t in zip(said, true, strict=True)]),
        "precision": precision,
        "recall": recall,
        "f1": ratio(2 * precision * recall, precision + recall),
        "yes_ratio": mean(said),
    }


@dataclass(frozen=True)
class MMERow:
    """One question of MME with the answer that was given; label: yes or no."""

    subtask: str
    image: str
    label: str
    prediction: str


def mme_reads(text: str) -> str:
    """yes, no or other: what the first four letters say."""
    start = text.strip().lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def mme_scores(rows: Sequence[MMERow]) -> dict[str, float]:
    """Points by subtask (0 to 200: accuracy + share of images with all questions right, each times 100), and their sums
    "perception" and "cognition" where rows have subtasks of them. Raises ValueError for a label other than yes and
    no."""
    right: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        wanted = "yes" if label_is_yes(row.label) else "no"
        right[row.subtask][row.image].append(mme_reads(row.prediction) == wanted)
    points = {}
    for subtask, images in right.items():
        questions = [r for image in images.values() for r in image]
        points[subtask] = 100 * mean(questions) + 100 * mean([all(image) for image in images.values()])
    for name, group in (("perception", PERCEPTION), ("cognition", COGNITION)):
        own = [points[subtask] for subtask in group if subtask in points]
        if own:
            points[name] = sum(own)
    return points


def label_is_yes(label: str) -> bool:
    value = label.strip().lower()
    if value not in ("yes", "no"):
        raise ValueError(f"label {label!r}: must be yes or no")
    return value == "yes"


def mean(values: Sequence[bool]) -> float:
    """Raises UserError for none: a score of nothing is not 0."""
    if not values:
        raise UserError("no questions to score")
    return sum(values) / len(values)


def ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
