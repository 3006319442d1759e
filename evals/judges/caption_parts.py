"""What a model is asked to learn how well an image fits a text: one question about the whole text, or one about each
of its parts.

    whole   P("Yes" | image, "Does this figure show ...?")                  VQAScore (Lin et al. 2024, arXiv
            2404.01291)
    parts   geometric mean of P("red" | image, "what color is the shape?"), P("circle" | image, "what shape is
            present?"), ...

TIFA (Hu et al. 2023, arXiv 2303.11897) takes a text apart too: a language model writes the questions, and the score is
the share of them that a VQA model answers rightly. Here a regular expression of the config takes it apart, no second
model is needed, and the answers' probabilities count, as in VQAScore. The geometric mean, because an image with one
thing wrong does not half fit: the score is the probability that all is right, were the parts independent, made
comparable between texts of more and of fewer parts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from liquid_train.measurement.settings import VQAScoreConfig, template_fields


def questions_about(text: str, config: VQAScoreConfig) -> list[tuple[str, str]]:
    """(question, right answer) of each part whose groups `text` has; where it has none, the question about the whole
    text.

    The pattern is searched all over the text; of a group that matches in several places the first one counts.
    """
    return parts_of(text, config) or [(config.question.replace("{text}", text), config.answer)]


def parts_of(text: str, config: VQAScoreConfig) -> list[tuple[str, str]]:
    if config.pattern is None:
        return []
    found: dict[str, str] = {}
    for match in re.finditer(config.pattern, text):
        found = {name: value for name, value in match.groupdict().items() if value is not None} | found
    return [
        (part.question.format_map(found), part.answer.format_map(found))
        for part in config.parts
        if template_fields(part.question) | template_fields(part.answer) <= found.keys()
    ]


def joined(chances: Iterable[float]) -> float:
    """Geometric mean."""
    values = np.array(list(chances))
    return float(values.prod() ** (1 / len(values)))


def describe_questions(config: VQAScoreConfig) -> str:
    """Questions, pattern and answers, as provenance states them."""
    whole = f"P({config.answer!r}) of {config.question!r}"
    if config.pattern is None:
        return whole
    parts = ", ".join(f"P({part.answer!r}) of {part.question!r}" for part in config.parts)
    return f"geometric mean of {parts}, by the pattern {config.pattern!r}; of texts without these parts {whole}"


def unmatched(texts: Iterable[str], config: VQAScoreConfig) -> list[str]:
    """A warning where some of the texts had to be asked whole."""
    if config.pattern is None:
        return []
    every = list(texts)
    whole = [text for text in every if not parts_of(text, config)]
    if not whole:
        return []
    return [
        f"vqascore.pattern finds no part in {len(whole)} of {len(every)} texts, such as {whole[0]!r}: they were "
        "asked vqascore.question"
    ]
