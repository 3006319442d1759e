"""The `folder` source: images below a folder, each with its caption in a .txt of the same name next to it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from data_prep.settings import TokenizeSettings
from data_prep.source import Source, SourceRow, refuse_unused
from data_prep.sources import SOURCES
from liquid_train.errors import UserError
from liquid_train.image_tokenizer.preprocess import read_rgb

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")


@SOURCES.register("folder")
class FolderSource(Source):
    """One input: the folder, its images in order of their paths. An image without a .txt has no caption and is
    kept."""

    reads_input = True

    def __init__(self, settings: TokenizeSettings, seed: int) -> None:
        super().__init__(settings, seed)
        refuse_unused(settings, ())
        if settings.input is None or not Path(settings.input).expanduser().is_dir():
            raise UserError(
                f"tokenize.input={settings.input}: no such folder; tokenize.source=folder reads the images below one"
            )
        self.root = Path(settings.input).expanduser()

    def recipe(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for path in image_files(self.root):
            digest.update(
                os.fsencode(
                    f"{path.relative_to(self.root).as_posix()}\0{size(path)}\0{size(path.with_suffix('.txt'))}\0"
                )
            )
        return {"names_and_sizes": digest.hexdigest()}

    def inputs(self) -> list[str]:
        return ["."]

    def count(self, name: str) -> int:
        return sum(1 for _ in image_files(self.root))

    def rows_from(self, name: str, start: int) -> Iterator[SourceRow]:
        for path in islice(image_files(self.root), start, None):
            origin = path.relative_to(self.root).as_posix()
            try:
                text = path.with_suffix(".txt").read_text(encoding="utf-8").strip() or None
            except FileNotFoundError:
                text = None
            except UnicodeDecodeError:
                yield SourceRow({}, problem="caption is not UTF-8", origin=origin)
                continue
            except OSError as error:
                yield SourceRow({}, problem=f"unreadable caption: {error.strerror}", origin=origin)
                continue
            yield SourceRow({}, partial(read_rgb, path), text, origin=origin)


def image_files(folder: Path) -> Iterator[Path]:
    """Image files below a folder; only the names of one folder at a time are in memory."""
    try:
        with os.scandir(folder) as entries:
            names = sorted((entry.name, entry.is_dir()) for entry in entries)
    except OSError as error:
        raise UserError(f"tokenize.input={folder}: cannot be read: {error.strerror}") from error
    for name, is_folder in names:
        if is_folder:
            yield from image_files(folder / name)
        elif name.lower().endswith(IMAGE_SUFFIXES):
            yield folder / name


def size(path: Path) -> int:
    """Bytes of a file; -1 where there is none, also after a link that leads nowhere."""
    try:
        return path.stat().st_size
    except OSError:
        return -1
