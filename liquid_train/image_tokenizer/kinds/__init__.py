"""Kinds of image tokenizers: one file or package a kind, named as `vq.kind` names it.

A kind is found without torch, so that a job can tell sizes and files before anything heavy is imported.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from liquid_train.image_tokenizer.settings import VQSettings
from liquid_train.image_tokenizer.sizes import Sizes
from liquid_train.registry import Registry

if TYPE_CHECKING:
    from liquid_train.image_tokenizer.base import ImageTokenizer


class ImageTokenizerKind(Protocol):
    """How tokenizers of one kind are opened; ImageTokenizer has defaults for all three, and explains them."""

    @classmethod
    def sizes(cls, settings: VQSettings) -> Sizes: ...

    @classmethod
    def files(cls, settings: VQSettings) -> dict[str, Path]: ...

    @classmethod
    def open(cls, settings: VQSettings, parts: tuple[str, ...]) -> ImageTokenizer: ...


IMAGE_TOKENIZERS: Registry[type[ImageTokenizerKind]] = Registry("liquid_train.image_tokenizer.kinds", "image tokenizer")
