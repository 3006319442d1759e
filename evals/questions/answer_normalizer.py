"""How the published VQA evaluators write an answer before they compare it: lower case, digits, no articles, no
punctuation.

    TextVQA (the EvalAI rule)   words -> punctuation -> digits, articles, contractions
    VQAv2                       punctuation -> digits, articles, contractions

Both have oddities that change scores (a possessive 's is split off, "none" is 0, somebody'd becomes somebodyd); they
are kept, because a score is compared with scores that were made by them.
"""

from __future__ import annotations

import re

ARTICLES = ("a", "an", "the")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS = {word: str(n) for n, word in enumerate(NUMBERS)} | {"none": "0"}
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
DIGIT_COMMA = re.compile(r"\d,+\d")
PERIOD = re.compile(r"\.(?!\d)")
MAX_PERIODS = 32  # the evaluators pass re.UNICODE where re.sub takes a count

# Right spellings; each is found without any one of its apostrophes.
SPELLINGS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
    he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't
    must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've
    somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd
    something'd've something'll that's there'd there'd've there're there's they'd they'd've they'll they're
    they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've
    who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll
    y'all'd've you'd you'd've you'll you're you've
"""
CONTRACTIONS = {
    word[:i] + word[i + 1 :]: word for word in SPELLINGS.split() for i, letter in enumerate(word) if letter == "'"
} | {"somebody'd": "somebodyd"}


def normal_textvqa(answer: str) -> str:
    """An answer as TextVQA compares it."""
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return plain_words(without_punctuation(one_line(text)))


def normal_vqav2(answer: str) -> str:
    """An answer as VQAv2 compares it."""
    return plain_words(without_punctuation(one_line(answer)))


def one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def without_punctuation(text: str) -> str:
    """A mark next to a space goes; within a word it becomes a space, unless the text has a comma between digits."""
    result, number = text, DIGIT_COMMA.search(text) is not None
    for mark in PUNCTUATION:
        result = result.replace(mark, "" if number or f"{mark} " in text or f" {mark}" in text else " ")
    return PERIOD.sub("", result, count=MAX_PERIODS)


def plain_words(text: str) -> str:
    """Words as digits, without articles, contractions with their apostrophe."""
    words = (DIGITS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)
