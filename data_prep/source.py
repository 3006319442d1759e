"""What a source of samples is: named inputs, each with a number of rows, each row one sample to be.

    Source.inputs() -> names      count(name) -> rows      read(name, start) -> rows start, start + 1, ...

Rows are numbered through all inputs; that numbering is the plan of a shard set (data_prep/shard_set/plan.py). Any row
is reached from the start of its input without holding more than one in memory, so a set may be far larger than memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.remote_input import RemotePath, is_url
from data_prep.settings import TokenizeSettings
from liquid_train.errors import UserError
from liquid_train.image_tokenizer.preprocess import read_rgb

ReadImage = Callable[[], np.ndarray]  # an image as uint8 [height, width, 3]; raises one of READ_ERRORS
DAMAGED = "the file is damaged from here on"


@dataclass(frozen=True)
class ImageFile:
    """An image in a file of its own; called, it gives the pixels as read_rgb does."""

    path: Path | RemotePath

    def __call__(self) -> np.ndarray:
        return read_rgb(self.path if isinstance(self.path, Path) else self.path.read_bytes())

    def state(self) -> str | None:
        """Its size in bytes and when it was last modified: other content, another state. None where it is not there,
        and at a URL: to ask a store costs as much as to read."""
        if not isinstance(self.path, Path):
            return None
        try:
            status = self.path.stat()
        except OSError:
            return None
        return f"{status.st_size} {status.st_mtime_ns}"


@dataclass(frozen=True)
class SourceRow:
    """One row before tokenizing.

    info: KEY.json; an image's width and height are added when it is encoded. image: reads the pixels, uint8 [height,
    width, 3]; it is called in an encoder process, so it must pickle; None for a text or a chat without an image. text:
    KEY.txt: the caption of an image, or the text itself. problem: why the source calls this row unusable. key: its
    name in the shards, without a dot; None: the row's number. origin: how a message names it. ids: in place
    of a text, token ids, uint32 [n] for each of its documents.
    """

    info: dict[str, Any]
    image: ReadImage | None = None
    text: str | None = None
    problem: str | None = None
    key: str | None = None
    origin: str = ""
    ids: tuple[np.ndarray, ...] | None = None


@dataclass(frozen=True)
class Survey:
    """What planning has to know of one input. omitted: what the source leaves out of it by its own rules, by reason.
    damage: where the input breaks off, for what follows is lost and may be any number of rows; None for a whole one."""

    rows: int
    omitted: Counter[str] = field(default_factory=Counter)
    damage: str | None = None


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
        recognized by it at every start. Under keys `modified` stands when files were: `liquid data verify`, which
        reads copies too, leaves those out."""

    def places(self) -> list[Path | str]:
        """The folders and files that the input is: the output may not overlap them."""
        given = self.settings.input
        return [] if given is None else [given if is_url(given) else Path(given)]

    def inputs(self) -> list[str]:
        """Names of the inputs, in order; by default one."""
        return ["all"]

    @abstractmethod
    def count(self, name: str) -> int:
        """Rows of an input."""

    @abstractmethod
    def rows_from(self, name: str, start: int) -> Iterator[SourceRow]:
        """The rows of an input from number `start` on."""

    def survey(self, name: str) -> Survey:
        """An input's rows, and what else is found by going through it once."""
        return Survey(self.count(name))

    def omitted(self) -> Counter[str]:
        """What the source leaves out by its own rules before it looks into its inputs, by reason."""
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
    unset: dict[str, Any] = dict.fromkeys(("images", "image_key", "text_key", "tokenizer", "keep"))
    for key, default in {**unset, "copies": 1, "options": {}}.items():
        value = getattr(settings, key)
        if key not in used and value != default:
            raise UserError(f"tokenize.{key}={value}: tokenize.source={settings.source} does not use it; leave it out")
