"""The `folder` source: images below a folder, each with its caption in a .txt of the same name next to it."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from data_prep.file_source import READING, other_kind
from data_prep.file_walk import walk_files
from data_prep.settings import TokenizeSettings
from data_prep.source import ImageFile, Source, SourceRow, Survey, refuse_unused
from data_prep.sources import SOURCES
from liquid_train.errors import UserError
from liquid_train.image_tokenizer.preprocess import image_suffixes
from liquid_train.text_normalizer import normalize_text

CAPTION = ".txt"
NO_IMAGE = "caption without an image"
# Images all the same, which Pillow alone does not read: each counts as one that cannot be used.
OTHER_IMAGES = frozenset(
    (".heic", ".heif", ".jxl", ".svg", ".psd", ".exr", ".hdr", ".mpo", ".pcx")
    + (".dng", ".cr2", ".cr3", ".nef", ".arw", ".raw")
)
# Where Hugging Face's image folders have their captions
LISTS = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


class FoundImage(NamedTuple):
    """caption: its .txt, None where there is none."""

    path: Path
    caption: Path | None


@SOURCES.register("folder")
class FolderSource(Source):
    """One input: the folder, its images in order of their paths. An image without a .txt has no caption and is
    kept."""

    reads_input = True

    def __init__(self, settings: TokenizeSettings, seed: int) -> None:
        """Raises UserError for what is no folder."""
        super().__init__(settings, seed)
        refuse_unused(settings, ())
        if settings.input is None or not Path(settings.input).expanduser().is_dir():
            raise UserError(
                f"tokenize.input={settings.input}: no such folder; tokenize.source=folder reads the images below one"
            )
        self.root = Path(settings.input).expanduser()

    def recipe(self) -> dict[str, Any]:
        digest, modified = hashlib.sha256(), hashlib.sha256()
        for image in self._images(Counter()):
            name = image.path.relative_to(self.root).as_posix()
            (size, changed), (of_text, text_changed) = map(size_and_time, image)
            digest.update(os.fsencode(f"{name}\0{size}\0{of_text}\0"))
            modified.update(f"{changed} {text_changed}\0".encode())
        return {"names_and_sizes": digest.hexdigest(), "modified": modified.hexdigest(), "reading": READING}

    def inputs(self) -> list[str]:
        return ["."]

    def count(self, name: str) -> int:
        return self.survey(name).rows

    def survey(self, name: str) -> Survey:
        omitted: Counter[str] = Counter()
        return Survey(sum(1 for _ in self._images(omitted)), omitted)

    def rows_from(self, name: str, start: int) -> Iterator[SourceRow]:
        for path, caption in islice(self._images(Counter()), start, None):
            origin = path.relative_to(self.root).as_posix()
            if path.suffix.lower() not in image_suffixes():
                yield SourceRow({}, problem=f"no reader of {path.suffix.lower()} images", origin=origin)
                continue
            try:
                text = normalize_text(caption.read_text(encoding="utf-8")).strip() or None if caption else None
            except FileNotFoundError:  # a link that leads nowhere
                yield SourceRow({}, problem="missing caption", origin=origin)
            except UnicodeDecodeError:
                yield SourceRow({}, problem="caption is not UTF-8", origin=origin)
            except OSError as error:
                yield SourceRow({}, problem=f"unreadable caption: {error.strerror}", origin=origin)
            else:
                yield SourceRow({}, ImageFile(path), text, origin=origin)

    def _images(self, omitted: Counter[str]) -> Iterator[FoundImage]:
        """The images of the folder; all other files are counted in `omitted`. Raises UserError where captions stand in
        a list."""
        for file in walk_files(self.root, omitted):
            path, names = file.path, file.folder.by_stem[file.path.stem]
            caption = caption_of(names)
            if is_image(path.name):
                yield FoundImage(path, path.with_name(caption) if caption else None)
            elif path.name in LISTS:
                source = "parquet" if path.suffix == ".parquet" else "pairs"
                raise UserError(
                    f"tokenize.input={self.settings.input}: captions stand in {path.name}, which "
                    "tokenize.source=folder does not read (move it away where the .txt files are meant); give "
                    f"tokenize.source={source} tokenize.input={path}"
                )
            elif path.suffix.lower() != CAPTION:
                omitted[other_kind(file)] += 1
            elif path.name != caption or not any(map(is_image, names)):
                omitted[NO_IMAGE] += 1


def is_image(name: str) -> bool:
    suffix = PurePath(name).suffix.lower()
    return suffix in image_suffixes() or suffix in OTHER_IMAGES


def caption_of(names: list[str]) -> str | None:
    """The .txt among names of one stem; .txt before .TXT where there are both."""
    return max((name for name in names if PurePath(name).suffix.lower() == CAPTION), default=None)


def size_and_time(path: Path | None) -> tuple[int, int]:
    """Bytes of a file, and when it was last modified (ns); -1, 0 where there is none, also after a link that leads
    nowhere."""
    if path is None:
        return -1, 0
    try:
        status = path.stat()
    except OSError:
        return -1, 0
    return status.st_size, status.st_mtime_ns
