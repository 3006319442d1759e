"""The near-duplicate hashes of a set's samples, out of their KEY.json, and which samples are alike by them."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from data_prep.encode.hashes import HASHES
from data_prep.encode.minhash import parse_text_hash
from data_prep.encode.perceptual_hash import parse_image_hash
from data_prep.shard_set.maker import progress
from data_prep.tools.limits import Limits
from data_prep.tools.near_duplicates import (
    BothLikeness,
    Hashes,
    ImageLikeness,
    Likeness,
    Rows,
    TextLikeness,
    matches,
    near_duplicates,
)
from data_prep.tools.set_reader import SetReader
from liquid_train.data.shard_format import DamagedSample, decode_info
from liquid_train.errors import UserError


def image_likeness(limits: Limits) -> ImageLikeness:
    return ImageLikeness(limits.image_distance, limits.color_distance)


def text_likeness(limits: Limits) -> TextLikeness:
    return TextLikeness(limits.text_similarity)


def both_likeness(limits: Limits) -> BothLikeness:
    return BothLikeness(image_likeness(limits), text_likeness(limits))


class SampleHashes:
    """Collects the hashes of a set's samples as they are read. without: how many images and texts have no hash that can
    be read; these are not compared. Raises UserError for a set that was made without hashes."""

    def __init__(self, reader: SetReader, limits: Limits) -> None:
        recipe = reader.index.get("recipe")
        if recipe is not None and recipe.get("hashes") != HASHES:
            raise self._refused(reader)
        self.reader, self.limits = reader, limits
        self.hashes = Hashes(reader.samples)
        self.without: Counter[str] = Counter()

    def _refused(self, reader: SetReader) -> UserError:
        return UserError(
            f"{reader.path}: its samples have no hashes of version {HASHES} in KEY.json, by which they are compared; "
            "`liquid tokenize` keeps them (tokenize.hashes=true): make the set again with tokenize.overwrite=true"
        )

    def add(self, number: int, info: dict[str, Any], has_image: bool) -> None:
        """info: KEY.json."""
        if has_image and self.limits.match != "text":
            try:
                self.hashes.set_image(number, *parse_image_hash(info["image_hash"]))
            except (KeyError, ValueError, TypeError):
                self.without["image"] += 1
        if self.limits.match != "image":
            try:
                self.hashes.set_text(number, parse_text_hash(info["text_hash"]))
            except (KeyError, ValueError, TypeError):
                self.without["text"] += not has_image or self.limits.match in ("text", "both")

    def finish(self) -> Hashes:
        """All that was collected. Raises UserError where that is nothing."""
        if self.reader.samples and not (self.hashes.has_image.any() or self.hashes.has_text.any()):
            raise self._refused(self.reader)
        return self.hashes


def hashes_of(reader: SetReader, limits: Limits) -> Hashes:
    """Those of all samples of a set; damaged samples have none."""
    collected = SampleHashes(reader, limits)
    with progress(f"reading {reader.path.name}", reader.samples, sys.stdout.isatty()) as advance:
        for stored in reader.read():
            advance(1)
            with contextlib.suppress(DamagedSample):
                files = stored.files or {}
                collected.add(stored.number, decode_info(files.get("json")), "codes.npy" in files)
    return collected.finish()


def alike_within(hashes: Hashes, limits: Limits, rows: Rows) -> Iterator[tuple[str, Rows, Rows]]:
    """(by what, samples, for each the one before it that it is alike to and that stays) of those among `rows` that go.

    auto: images by the image, samples without one by their text. either: by the image, then what is left by the text.
    """
    images, texts = rows[hashes.has_image[rows]], rows[hashes.has_text[rows]]
    if limits.match == "auto":
        texts = texts[~hashes.has_image[texts]]
    if limits.match == "both":
        both = np.intersect1d(images, texts, assume_unique=True)
        yield "image and text", *_found(both, near_duplicates(both_likeness(limits), hashes, both))
        return
    gone = np.zeros(0, np.int64)
    if limits.match != "text":
        gone, first = _found(images, near_duplicates(image_likeness(limits), hashes, images))
        yield "image", gone, first
    if limits.match != "image":
        texts = np.setdiff1d(texts, gone, assume_unique=True)
        yield "text", *_found(texts, near_duplicates(text_likeness(limits), hashes, texts))


def alike_to(
    hashes: Hashes, limits: Limits, rows: Rows, others: Hashes
) -> Iterator[tuple[str, Rows, Rows, np.ndarray]]:
    """(by what, samples, for each the one of `others` that it is alike to, which of `others` were found: bool) of those
    among `rows` that are alike to one of `others`.

    auto: by the images where both have one, else by their texts. either: by either.
    """
    pairs: list[tuple[str, Likeness, np.ndarray, np.ndarray]] = []
    image, text = (hashes.has_image[rows], others.has_image), (hashes.has_text[rows], others.has_text)
    if limits.match == "both":
        pairs.append(("image and text", both_likeness(limits), image[0] & text[0], image[1] & text[1]))
    if limits.match in ("auto", "image", "either"):
        pairs.append(("image", image_likeness(limits), *image))
    if limits.match in ("text", "either"):
        pairs.append(("text", text_likeness(limits), *text))
    if limits.match == "auto":
        pairs.append(("text", text_likeness(limits), text[0], text[1] & ~image[1]))
        pairs.append(("text", text_likeness(limits), text[0] & ~image[0], text[1] & image[1]))
    for what, likeness, mine, theirs in pairs:
        there = np.flatnonzero(theirs)
        like, found = matches(likeness, hashes, rows[mine], others, there)
        which = np.zeros(len(theirs), bool)
        which[there[found]] = True
        yield what, *_found(rows[mine], like), which


def _found(rows: Rows, like: Rows) -> tuple[Rows, Rows]:
    return rows[like >= 0], like[like >= 0]
