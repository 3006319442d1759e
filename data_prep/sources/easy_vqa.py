"""easy-VQA (PyPI `easy-vqa`, MIT): 64x64 images of one coloured shape, questions with one-word answers, captions
derived.

The package states no captions. "a blue rectangle" is derived from an image's questions and answers: a direct answer
gives the word ("what color is the shape?" blue), "yes" to "is there a circle?" too, and every "no" strikes one
candidate out, until one is left. An image whose colour or shape stays open has no caption and serves VQA only.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from liquid_train.errors import UserError

COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle")
SPLITS = ("train", "test")

# How a caption can be worded, and how often training is to draw each wording; the first is KEY.txt.
WORDINGS = (
    ("a {color} {shape}", 0.5),
    ("{color} {shape}", 0.1),
    ("a {shape} that is {color}", 0.1),
    ("a picture of a {color} {shape}", 0.1),
    ("an image of a {color} {shape}", 0.1),
    ("a {color} {shape} on a light background", 0.1),
)

_NEGATED = re.compile(r"\b(not|no)\b")


@dataclass(frozen=True)
class EasyVQAImage:
    """One image with its questions; `color` and `shape` are None where the answers leave them open.

    problem: why the image cannot be used (its answers contradict each other), else None.
    """

    number: int
    path: Path
    questions: list[tuple[str, str]] = field(hash=False)
    color: str | None
    shape: str | None
    problem: str | None = None

    @property
    def caption(self) -> str | None:
        return self.captions[0][0] if self.captions else None

    @property
    def captions(self) -> list[tuple[str, float]]:
        """(wording, weight) of every way to say the caption, the plainest first; empty where there is no caption."""
        if not (self.color and self.shape):
            return []
        return [(wording.format(color=self.color, shape=self.shape), weight) for wording, weight in WORDINGS]


def answer_type(answer: str) -> str:
    """'color', 'shape' or 'yes/no': the three kinds of easy-VQA questions, told by their answers."""
    return "color" if answer in COLORS else "shape" if answer in SHAPES else "yes/no"


class Contradiction(ValueError):
    """The answers about an image exclude each other: damage of that image, which is counted."""


def derive(questions: list[tuple[str, str]], candidates: tuple[str, ...]) -> str | None:
    """The one of `candidates` that the (question, answer) pairs leave, or None when several are left.

    Raises Contradiction when the answers contradict each other (none is left).
    """
    left = set(candidates)
    for question, answer in questions:
        words = set(re.findall(r"[a-z]+", question))
        if answer in candidates:
            left &= {answer}
        elif answer in ("yes", "no"):
            named = words & set(candidates)
            present = (answer == "yes") != bool(_NEGATED.search(question))
            left = left & named if named and present else left - named
        elif words & set(candidates):  # "what color is the circle?" tells the shape
            left &= words
    if not left:
        raise Contradiction(f"contradicting answers: {questions}")
    return left.pop() if len(left) == 1 else None


def describe(number: int, path: Path, questions: list[tuple[str, str]]) -> EasyVQAImage:
    """One image with what its answers tell; contradicting answers are a `problem` of this image, not an error."""
    try:
        return EasyVQAImage(number, path, questions, derive(questions, COLORS), derive(questions, SHAPES))
    except Contradiction:
        return EasyVQAImage(number, path, questions, None, None, problem="contradicting answers")


def load_split(split: str) -> list[EasyVQAImage]:
    """All images of 'train' (4,000) or 'test' (1,000), by number. Raises UserError when the package is missing."""
    if split not in SPLITS:
        raise UserError(f"tokenize.split={split}: easy_vqa has {' and '.join(SPLITS)}")
    try:
        import easy_vqa
    except ImportError as error:
        raise UserError(
            "tokenize.source=easy_vqa needs the easy-vqa package: pip install 'liquid-train[demo]'"
        ) from error
    paths = easy_vqa.get_train_image_paths() if split == "train" else easy_vqa.get_test_image_paths()
    rows = easy_vqa.get_train_questions() if split == "train" else easy_vqa.get_test_questions()
    questions: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for question, answer, number in zip(*rows, strict=True):
        questions[number].append((question, answer))
    return [describe(number, Path(paths[number]), questions[number]) for number in sorted(paths)]
