"""What a source of samples is: named inputs, each with a number of rows, each row one sample to be.

    Source.inputs() -> names      count(name) -> rows      read(name, start) -> rows start, start + 1, ...

Rows are numbered through all inputs; that numbering is the plan of a shard set (data_prep/shard_set/plan.py). Any row
is reached from the start of its input without holding more than one in memory, so a set may be far larger than memory.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_prep.settings import TokenizeSettings
from liquid_train.errors import UserError

ReadImage = Callable[[], np.ndarray]  # an image as uint8 [height, width, 3]; raises one of READ_ERRORS
DAMAGED = "the file is damaged from here on"

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class SourceRow:
    """One row before tokenizing.

    info: KEY.json; an image's width and height are added when it is encoded. image: reads the pixels, uint8 [height,
    width, 3]; it is called in an encoder process, so it must pickle; None for a text or a chat without an image. text:
    KEY.txt: the caption of an image, or the text itself. problem: why the source calls this row unusable. key: its
    name in the shards, without a dot; None: the row's number. origin: how a message names it.
    """

    info: dict[str, Any]
    image: ReadImage | None = None
    text: str | None = None
    problem: str | None = None
    key: str | None = None
    origin: str = ""


class Source(ABC):
    """What `liquid tokenize` reads. Reading twice gives the same rows, one at a time.

    has_images: False for a source of texts alone, which needs no image tokenizer. reads_input: whether tokenize.input
    names its files. seeks: whether `read` reaches a row without going through all before it.
    """

    has_images = True
    reads_input = False
    seeks = False

    _rest: tuple[str, int, Iterator[SourceRow]] | None = None  # input, its next row, what is left of it

    def __init__(self, settings: TokenizeSettings, seed: int) -> None:
        """Raises UserError for settings that the source cannot follow; `refuse_unused` does it for those it ignores."""
        self.settings, self.seed = settings, seed

    @abstractmethod
    def recipe(self) -> dict[str, Any]:
        """Everything but tokenize.options that determines the rows, as JSON. It must be cheap: a finished set is
        recognized by it at every start."""

    def inputs(self) -> list[str]:
        """Names of the inputs, in order; by default one."""
        return ["all"]

    @abstractmethod
    def count(self, name: str) -> int:
        """Rows of an input."""

    @abstractmethod
    def rows_from(self, name: str, start: int) -> Iterator[SourceRow]:
        """The rows of an input from number `start` on."""

    def omitted(self) -> Counter[str]:
        """What the source leaves out by its own rules, by reason."""
        return Counter()

    def read(self, name: str, start: int) -> Iterator[SourceRow]:
        """As rows_from, and where the last reading stopped at `start`, it goes on from there.

        A set's shards are read one after the other, and most inputs have no other way to a row than through all rows
        before it: from the start each time, a file of n shards would be read n / 2 times.
        """
        rest, self._rest = self._rest, None
        rows = rest[2] if rest and rest[:2] == (name, start) else self.rows_from(name, start)
        number = start
        try:
            for row in rows:
                number += 1
                yield row
        except GeneratorExit:
            self._rest = name, number, rows
            raise


def refuse_unused(settings: TokenizeSettings, used: tuple[str, ...]) -> None:
    """Raise UserError for a setting that the source would ignore."""
    for key, unset in (("images", None), ("image_key", None), ("text_key", None), ("copies", 1), ("options", {})):
        value = getattr(settings, key)
        if key not in used and value != unset:
            raise UserError(f"tokenize.{key}={value}: tokenize.source={settings.source} does not use it; leave it out")


def readable(value: Any) -> Any:
    """JSON without lone surrogates, which JSON can spell and UTF-8 and the tokenizers cannot: U+FFFD stands in their
    place."""
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, list):
        return [readable(v) for v in value]
    return {readable(k): readable(v) for k, v in value.items()} if isinstance(value, dict) else value


def first_caption(row: dict[str, Any], keys: tuple[str, ...]) -> str | None:
    """The first of the texts under `keys` that is not blank, without blanks around it."""
    return next((row[key].strip() for key in keys if isinstance(row.get(key), str) and row[key].strip()), None)
