"""Sources that come with a Python package: the quickstart's images (`easy_vqa`) and texts (`python_docs`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from typing import Any

from data_prep.encode.augmentation import read_varied
from data_prep.settings import TokenizeSettings
from data_prep.sources import easy_vqa, python_docs
from data_prep.sources.base import Item, refuse_unused
from liquid_train.errors import UserError
from liquid_train.image_tokenizer.preprocess import read_rgb


class EasyVQASource:
    """The images of easy-VQA, then their varied copies; every one carries all of the image's questions.

    (The questions name no side, so they hold for a mirrored image too.)
    """

    has_images = True

    def __init__(self, settings: TokenizeSettings, seed: int) -> None:
        _check_split(settings, easy_vqa.SPLITS)
        _refuse_input(settings)
        refuse_unused(settings, ("copies",))
        self.split, self.copies, self.seed = settings.split, settings.copies, seed
        try:
            self.version = version("easy-vqa")
        except PackageNotFoundError as error:
            raise UserError(
                "tokenize.source=easy_vqa needs the easy-vqa package: pip install 'liquid-train[demo]'"
            ) from error
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

    def inputs(self) -> list[str]:
        return [self.split]

    def count(self, name: str) -> int:
        return len(self.images) * self.copies

    def read(self, name: str, start: int) -> Iterator[Item]:
        for row in range(start, self.count(name)):
            copy, number = divmod(row, len(self.images))
            yield self._item(self.images[number], copy)

    def _item(self, image: easy_vqa.EasyVQAImage, copy: int) -> Item:
        key = f"{self.split}-{image.number:05d}"
        info: dict[str, Any] = {
            "questions": [{"question": question, "answers": [answer]} for question, answer in image.questions]
        }
        if image.captions:
            info["captions"] = [{"text": text, "weight": weight} for text, weight in image.captions]
        if copy == 0:
            return Item(info, partial(read_rgb, image.path), image.caption, image.problem, key, key)
        read = partial(read_varied, image.path, self.seed, key, copy)
        key = f"{key}-c{copy}"
        return Item({**info, "copy": copy}, read, image.caption, image.problem, key, key)


class PythonDocsSource:
    """Documents cut from the Python language reference."""

    has_images = False

    def __init__(self, settings: TokenizeSettings, seed: int) -> None:
        _check_split(settings, python_docs.SPLITS)
        _refuse_input(settings)
        refuse_unused(settings, ())
        self.split = settings.split
        self.topics = python_docs.load_topics()
        self.documents, repeated = python_docs.split_documents(self.topics, self.split)
        self._omitted = Counter({"repeated paragraph": repeated})

    def recipe(self) -> dict[str, Any]:
        return {
            "split": self.split,
            "content": python_docs.content_digest(self.topics),
            "max_characters": python_docs.MAX_CHARACTERS,
        }

    def omitted(self) -> Counter[str]:
        return self._omitted

    def inputs(self) -> list[str]:
        return [self.split]

    def count(self, name: str) -> int:
        return len(self.documents)

    def read(self, name: str, start: int) -> Iterator[Item]:
        for number, document in enumerate(islice(self.documents, start, None), start):
            key = f"{self.split}-{number:05d}"
            yield Item({"topic": document.topic, "part": document.part}, text=document.text, key=key, origin=key)


def _check_split(settings: TokenizeSettings, splits: tuple[str, ...]) -> None:
    if settings.split not in splits:
        raise UserError(f"tokenize.split={settings.split}: {settings.source} has {' and '.join(splits)}")


def _refuse_input(settings: TokenizeSettings) -> None:
    if settings.input is not None:
        raise UserError(
            f"tokenize.input={settings.input}: {settings.source} comes with a package and reads no files; leave "
            "tokenize.input out"
        )
