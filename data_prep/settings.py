"""Everything `liquid tokenize` reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from liquid_train.image_tokenizer.settings import VQSettings


@dataclass
class TokenizeSettings:
    source: str = "???"
    split: str = "train"  # of a source that has splits
    input: str | None = None  # files, a folder or a pattern, for sources that read files
    images: str | None = None  # what paths of images in a list are relative to; None = the list's own folder
    image_key: str | None = None  # where a row has its image; None = the usual names
    text_key: str | None = None  # where a row has its text; None = the usual names
    options: dict[str, Any] = field(default_factory=dict)  # what a source of your own is made with
    output: str = "???"
    part: str | None = None  # I/N; None = the rank of torchrun, else all of it
    # 1 = the images as they are; further copies are mirrored and shifted (augmentation before tokenizing)
    copies: int = 1
    crop: str = "none"  # none, center or multiratio
    size: int | None = None  # pixels; None = the VQ's resolution
    sizes: list[str] | None = None  # WIDTHxHEIGHT, for multiratio; None = a list made from size
    max_aspect: float | None = 2.0
    max_characters: int = 20000  # of one text document
    precision: str = "fp32"
    batch_size: str = "auto"
    compile: bool = False
    shard_size: int = 1024  # input rows of one shard
    workers: int | None = None  # processes that read and, on a CPU, encode; None = one a core
    device: str = "auto"
    overwrite: bool = False
    max_bad: float = 0.05
    progress: bool = True


@dataclass
class TokenizeJob:
    """Everything `liquid tokenize` reads."""

    seed: int = 0
    vq: VQSettings = field(default_factory=VQSettings)
    tokenize: TokenizeSettings = field(default_factory=TokenizeSettings)
