"""easy-VQA (PyPI `easy-vqa`, MIT): 64x64 images of one coloured shape, questions with one-word answers, captions
derived.

The package states no captions. "a blue rectangle" is derived from an image's questions and answers: a direct answer
gives the word ("what color is the shape?" blue), "yes" to "is there a circle?" too, and every "no" strikes one
candidate out, until one is left. An image whose colour or shape stays open has no caption and serves VQA only.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from data_prep.settings import TokenizeSettings
from data_prep.source import Source, SourceRow
from data_prep.sources import SOURCES
from data_prep.sources._augmentation import read_varied
from data_prep.sources._easy_vqa_wordings import WORDINGS_VERSION, captions, questions
from data_prep.sources._packaged import check_packaged
from liquid_train.data.keyed import keyed_generator
from liquid_train.errors import UserError
from liquid_train.image_tokenizer.preprocess import read_rgb
from liquid_train.packages import missing_package

COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle")
SPLITS = ("train", "test")

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
        """(wording, weight) of every wording of the caption, the plainest first; empty where there is no caption."""
        if not (self.color and self.shape):
            return []
        return captions(self.color, self.shape)


def answer_type(answer: str) -> str:
    """'color', 'shape' or 'yes/no': the three kinds of easy-VQA questions, by their answers."""
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


def read_answers(number: int, path: Path, questions: list[tuple[str, str]]) -> EasyVQAImage:
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
        raise UserError(missing_package("tokenize.source=easy_vqa", "the easy-vqa package", "demo")) from error
    paths = easy_vqa.get_train_image_paths() if split == "train" else easy_vqa.get_test_image_paths()
    rows = easy_vqa.get_train_questions() if split == "train" else easy_vqa.get_test_questions()
    questions: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for question, answer, number in zip(*rows, strict=True):
        questions[number].append((question, answer))
    return [read_answers(number, Path(paths[number]), questions[number]) for number in sorted(paths)]


@SOURCES.register("easy_vqa")
class EasyVQASource(Source):
    """The images of easy-VQA with their questions, then their varied copies with questions in other words.

    (No question names a side, so that all hold for a mirrored image.)
    """

    def __init__(self, settings: TokenizeSettings, seed: int) -> None:
        super().__init__(settings, seed)
        check_packaged(settings, SPLITS, ("copies",))
        self.split, self.copies = settings.split, settings.copies
        try:
            self.version = version("easy-vqa")
        except PackageNotFoundError as error:
            raise UserError(missing_package("tokenize.source=easy_vqa", "the easy-vqa package", "demo")) from error
        self._images: list[EasyVQAImage] | None = None

    @property
    def images(self) -> list[EasyVQAImage]:
        if self._images is None:
            self._images = load_split(self.split)
        return self._images

    def recipe(self) -> dict[str, Any]:
        varied = {"seed": self.seed} if self.copies > 1 else {}  # without copies the seed decides nothing
        wordings = {"wordings": WORDINGS_VERSION}
        return {"split": self.split, "version": self.version, "copies": self.copies, **wordings, **varied}

    def inputs(self) -> list[str]:
        return [self.split]

    def count(self, name: str) -> int:
        return len(self.images) * self.copies

    def rows_from(self, name: str, start: int) -> Iterator[SourceRow]:
        for row in range(start, self.count(name)):
            copy, number = divmod(row, len(self.images))
            yield self._row(self.images[number], copy)

    def _row(self, image: EasyVQAImage, copy: int) -> SourceRow:
        key = f"{self.split}-{image.number:05d}"
        info: dict[str, Any] = {}
        read, asked = partial(read_rgb, image.path), image.questions
        if copy:
            read = partial(read_varied, image.path, self.seed, key, copy)
            asked = questions(image.color, image.shape, keyed_generator(self.seed, key, copy, "questions")) or asked
            key, info = f"{key}-c{copy}", {"copy": copy}
        info["questions"] = [{"question": question, "answers": [answer]} for question, answer in asked]
        if image.captions:
            info["captions"] = [{"text": text, "weight": weight} for text, weight in image.captions]
        return SourceRow(info, read, image.caption, image.problem, key, key)
