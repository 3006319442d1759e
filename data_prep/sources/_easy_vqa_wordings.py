"""What is said about an image of one coloured shape: captions in several wordings, and questions beyond the package's.

easy-VQA's own questions have 24 forms. Three of four ask whether a colour or shape is there, half of them with a `not`,
and the question alone tells 82.5% of the answers, so that a small model learns late to look at the image: whether two
words mean the same shows neither in the one nor in the other. Questions of an image's varied copies make it show early:
yes and no are about equally likely, a few words are asked for more often than others, and few questions are negated.
(Measured: docs/quickstart.md.)
"""

from __future__ import annotations

import numpy as np

WORDINGS_VERSION = 2  # in the recipe of a set: another one where anything below changes what is written

# Wordings of a caption, and the share of training in which each is drawn; the first is KEY.txt.
CAPTIONS = (
    ("a {color} {shape}", 0.5),
    ("A {color} {shape}", 0.05),
    ("A {COLOR} {SHAPE}", 0.05),
    ("{color} {shape}", 0.08),
    ("{COLOR} {SHAPE}", 0.02),
    ("a {shape} that is {color}", 0.075),
    ("a picture of a {color} {shape}", 0.075),
    ("an image of a {color} {shape}", 0.075),
    ("a {color} {shape} on a light background", 0.075),
)

ASKED_IF_COLOR = (
    "is a {word} shape present?",
    "is there a {word} shape?",
    "does the image contain a {word} shape?",
    "is there a {word} shape in the image?",
    "is it {word}?",
    "is the shape {word}?",
    "is this {word}?",
)
ASKED_IF_SHAPE = (
    "is a {word} present?",
    "is there a {word}?",
    "does the image contain a {word}?",
    "is there a {word} in the image?",
    "is it a {word}?",
    "is this a {word}?",
    "does this show a {word}?",
)
ASKED_IF_NO_COLOR = (
    "is no {word} shape present?",
    "is there not a {word} shape?",
    "does the image not contain a {word} shape?",
    "is there not a {word} shape in the image?",
)
ASKED_IF_NO_SHAPE = (
    "is no {word} present?",
    "is there not a {word}?",
    "does the image not contain a {word}?",
    "is there not a {word} in the image?",
)
ASKED_COLOR = ("what color is it?", "which color is the shape?", "what color is the {shape}?", "what color do you see?")
ASKED_SHAPE = ("what shape is it?", "which shape is this?", "what is the {color} shape?", "what shape do you see?")

NEGATED = 0.05  # share of the questions with a `not`; with 25% a model learned to look half as fast
DIRECT = 0.1  # share of the questions that are answered with the word itself
QUESTIONS = 16  # of a varied copy, half of them about its colour
# How often a word is asked for, relative to others of its kind. With all alike a model answered at random after 10,000
# questions; asked for circles alone, it looked at the image after 2,500.
SHAPES_ASKED = {"circle": 0.6, "rectangle": 0.25, "triangle": 0.15}
COLORS_ASKED = {
    "red": 0.40,
    "blue": 0.20,
    "green": 0.12,
    "yellow": 0.08,
    "black": 0.05,
    "brown": 0.05,
    "gray": 0.05,
    "teal": 0.05,
}
USUAL = 0.8  # share of the questions in easy-VQA's own wording, which are the first four


def captions(color: str, shape: str) -> list[tuple[str, float]]:
    """(text, share of training) of every wording, the plainest first; the shares add up to 1."""
    words = {"color": color, "shape": shape, "COLOR": color.upper(), "SHAPE": shape.upper()}
    return [(wording.format(**words), share) for wording, share in CAPTIONS]


def questions(color: str | None, shape: str | None, random: np.random.Generator) -> list[tuple[str, str]]:
    """QUESTIONS (question, answer) pairs on what is known of an image; none where neither is."""
    asked = []
    for number in range(QUESTIONS):
        about_color = shape is None or (color is not None and number % 2 == 0)
        if about_color and color is not None:
            asked.append(_about_color(color, shape, random))
        elif shape is not None:
            asked.append(_about_shape(color, shape, random))
    return [(_cased(question, random), answer) for question, answer in asked]


def _about_color(color: str, shape: str | None, random: np.random.Generator) -> tuple[str, str]:
    if random.random() < DIRECT:
        return _one(ASKED_COLOR, random).format(shape=shape or "shape"), color
    return _yes_or_no(color, COLORS_ASKED, ASKED_IF_COLOR, ASKED_IF_NO_COLOR, random)


def _about_shape(color: str | None, shape: str, random: np.random.Generator) -> tuple[str, str]:
    if random.random() < DIRECT:
        return " ".join(_one(ASKED_SHAPE, random).format(color=color or "").split()), shape
    return _yes_or_no(shape, SHAPES_ASKED, ASKED_IF_SHAPE, ASKED_IF_NO_SHAPE, random)


def _yes_or_no(
    own: str, asked: dict[str, float], plain: tuple[str, ...], negated: tuple[str, ...], random: np.random.Generator
) -> tuple[str, str]:
    """A question for a word of `asked`: whichever it is, the image's own in a third to three quarters of the cases."""
    words = list(asked)
    weights = np.array([asked[word] * (0.5 if word == own else 0.5 / (len(words) - 1)) for word in words])
    word = words[int(random.choice(len(words), p=weights / weights.sum()))]
    is_negated = random.random() < NEGATED
    question = _one(negated if is_negated else plain, random).format(word=word)
    return question, "yes" if (word == own) != is_negated else "no"


def _one(wordings: tuple[str, ...], random: np.random.Generator) -> str:
    known = wordings[:4] if random.random() < USUAL else wordings
    return known[int(random.integers(len(known)))]


def _cased(text: str, random: np.random.Generator) -> str:
    """As it is, or in 6% of the cases with a capital, in 3% in capitals."""
    kind = random.random()
    return text.upper() if kind < 0.03 else text[0].upper() + text[1:] if kind < 0.09 else text
