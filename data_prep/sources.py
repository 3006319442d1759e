"""Where samples come from: each source streams items one at a time, in an order that never changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

import numpy as np

from data_prep import easy_vqa, python_docs
from data_prep.images import read_rgb, read_varied
from liquid_train.config import TokenizeSettings


@dataclass(frozen=True)
class Item:
    """One sample before tokenizing.

    key: its name in the shards, without a dot. info: KEY.json; an image's width and height are added when it is encoded.
    image: reads the pixels, uint8 [height, width, 3]; runs in an encoder process, so it must pickle; None for a text sample.
    text: KEY.txt: the caption of an image, or the text itself. problem: why the source says this item is unusable.
    """

    key: str
    info: dict[str, Any]
    image: Callable[[], np.ndarray] | None = None
    text: str | None = None
    problem: str | None = None


class Source(Protocol):
    """What `liquid tokenize` needs of a source. Iterating twice gives the same items; items are made as they are asked for."""

    has_images: bool

    def recipe(self) -> dict[str, Any]:
        """Everything that determines the items, as JSON; cheap, because a finished set is recognized by it."""
        ...

    def omitted(self) -> Counter[str]:
        """What the source itself left out, by reason; counted once it was iterated over."""
        ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Item]: ...


class EasyVQASource:
    """The pictures of easy-VQA, then their varied copies; every one carries all of the picture's questions.

    (The questions name no side, so they hold for a mirrored picture too.)
    """

    has_images = True

    def __init__(self, settings: TokenizeSettings, seed: int) -> None:
        _check_split(settings, easy_vqa.SPLITS)
        _refuse_input(settings)
        self.split, self.copies, self.seed = settings.split, settings.copies, seed
        try:
            self.version = version("easy-vqa")
        except PackageNotFoundError as error:
            raise ValueError("tokenize.source=easy_vqa needs the easy-vqa package: pip install 'liquid-train[demo]'") from error
        self._images: list[easy_vqa.EasyVQAImage] | None = None

    @property
    def images(self) -> list[easy_vqa.EasyVQAImage]:
        if self._images is None:
            self._images = easy_vqa.load_split(self.split)
        return self._images

    def recipe(self) -> dict[str, Any]:
        varied = {"seed": self.seed} if self.copies > 1 else {}  # without copies the seed decides nothing
        return {"split": self.split, "version": self.version, "copies": self.copies, **varied}

    def omitted(self) -> Counter[str]:
        return Counter()

    def __len__(self) -> int:
        return len(self.images) * self.copies

    def __iter__(self) -> Iterator[Item]:
        for copy in range(self.copies):
            for image in self.images:
                yield self._item(image, copy)

    def _item(self, image: easy_vqa.EasyVQAImage, copy: int) -> Item:
        key = f"{self.split}-{image.number:05d}"
        info: dict[str, Any] = {"questions": [{"question": question, "answers": [answer]} for question, answer in image.questions]}
        if image.captions:
            info["captions"] = [{"text": text, "weight": weight} for text, weight in image.captions]
        if copy == 0:
            return Item(key, info, partial(read_rgb, image.path), image.caption, image.problem)
        read = partial(read_varied, image.path, self.seed, key, copy)
        return Item(f"{key}-c{copy}", {**info, "copy": copy}, read, image.caption, image.problem)


class PythonDocsSource:
    """Documents cut from the Python language reference."""

    has_images = False

    def __init__(self, settings: TokenizeSettings, seed: int) -> None:
        _check_split(settings, python_docs.SPLITS)
        _refuse_input(settings)
        if settings.copies != 1:
            raise ValueError(f"tokenize.copies={settings.copies}: python_docs has no images to vary; leave it at 1")
        self.split = settings.split
        self.topics = python_docs.load_topics()
        self.documents, repeated = python_docs.split_documents(self.topics, self.split)
        self._omitted = Counter({"repeated paragraph": repeated})

    def recipe(self) -> dict[str, Any]:
        return {"split": self.split, "content": python_docs.content_digest(self.topics), "max_characters": python_docs.MAX_CHARACTERS}

    def omitted(self) -> Counter[str]:
        return self._omitted

    def __len__(self) -> int:
        return len(self.documents)

    def __iter__(self) -> Iterator[Item]:
        for number, document in enumerate(self.documents):
            yield Item(f"{self.split}-{number:05d}", {"topic": document.topic, "part": document.part}, text=document.text)


SOURCES: dict[str, Callable[[TokenizeSettings, int], Source]] = {"easy_vqa": EasyVQASource, "python_docs": PythonDocsSource}


def open_source(settings: TokenizeSettings, seed: int) -> Source:
    """The source that tokenize.source names. Raises ValueError for an unknown one and for settings it cannot follow."""
    if settings.source not in SOURCES:
        raise ValueError(f"tokenize.source={settings.source}: no such source; one of {', '.join(SOURCES)}")
    return SOURCES[settings.source](settings, seed)


def _check_split(settings: TokenizeSettings, splits: tuple[str, ...]) -> None:
    if settings.split not in splits:
        raise ValueError(f"tokenize.split={settings.split}: {settings.source} has {' and '.join(splits)}")


def _refuse_input(settings: TokenizeSettings) -> None:
    if settings.input is not None:
        raise ValueError(f"tokenize.input={settings.input}: {settings.source} comes with a package and reads no files; leave tokenize.input out")
