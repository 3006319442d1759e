"""The `folder` source: pictures below a folder, each with its caption in a .txt of the same name beside it."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from data_prep.images import read_rgb
from data_prep.sources.base import Item, refuse_unused
from liquid_train.config import TokenizeSettings

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")


class FolderSource:
    """One input: the folder, its pictures in order of their paths. A picture without a .txt has no caption and is kept."""

    has_images = True

    def __init__(self, settings: TokenizeSettings) -> None:
        refuse_unused(settings, ())
        if settings.input is None or not Path(settings.input).expanduser().is_dir():
            raise ValueError(f"tokenize.input={settings.input}: no such folder; tokenize.source=folder reads the pictures below one")
        self.root = Path(settings.input).expanduser()

    def recipe(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for path in pictures(self.root):
            digest.update(f"{path.relative_to(self.root).as_posix()}\0{path.stat().st_size}\0".encode())
        return {"names_and_sizes": digest.hexdigest()}

    def omitted(self) -> Counter[str]:
        return Counter()

    def inputs(self) -> list[str]:
        return ["."]

    def count(self, name: str) -> int:
        return sum(1 for _ in pictures(self.root))

    def read(self, name: str, start: int) -> Iterator[Item]:
        for path in islice(pictures(self.root), start, None):
            origin = path.relative_to(self.root).as_posix()
            try:
                text = path.with_suffix(".txt").read_text(encoding="utf-8").strip() or None
            except FileNotFoundError:
                text = None
            except (OSError, UnicodeDecodeError):
                yield Item({}, problem="caption is not UTF-8", origin=origin)
                continue
            yield Item({}, partial(read_rgb, path), text, origin=origin)


def pictures(folder: Path) -> Iterator[Path]:
    """Picture files below a folder; only the names of one folder at a time are in memory."""
    with os.scandir(folder) as entries:
        names = sorted((entry.name, entry.is_dir()) for entry in entries)
    for name, is_folder in names:
        if is_folder:
            yield from pictures(folder / name)
        elif name.lower().endswith(IMAGE_SUFFIXES):
            yield folder / name
