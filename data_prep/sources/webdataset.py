"""The `webdataset` source: tars with one image and its caption a sample, as img2dataset writes them."""

from __future__ import annotations

import json
import math
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.file_source import FileSource
from data_prep.settings import TokenizeSettings
from data_prep.source import SourceRow, first_caption, readable
from data_prep.sources import SOURCES
from data_prep.sources._listed import TEXT_KEYS, answered_questions
from liquid_train.image_tokenizer.preprocess import read_rgb

IMAGE_SUFFIXES = ("png", "jpg", "jpeg", "webp")
DAMAGED = "the tar is damaged from here on"
# What tarfile raises for a damaged header: its numbers can ask for any amount of memory.
TAR_ERRORS = (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, MemoryError)

Files = dict[str, bytes]  # extension -> content of one sample


@SOURCES.register("webdataset")
class WebdatasetSource(FileSource):
    """KEY.jpg (png, jpeg, webp) with KEY.txt, or KEY.json with `caption`, `text` or `text_prompt`; KEY.json may have
    `questions`."""

    suffixes = (".tar",)
    seeks = True
    keys = ("text_key",)

    def __init__(self, settings: TokenizeSettings, seed: int) -> None:
        super().__init__(settings, seed)
        self.text_keys = (settings.text_key,) if settings.text_key else TEXT_KEYS

    def count(self, name: str) -> int:
        return sum(1 for _ in samples(self.files[name], 0, None))

    def rows_from(self, name: str, start: int) -> Iterator[SourceRow]:
        for key, files in samples(self.files[name], start, b""):
            origin = readable(f"{name}, {key}")
            yield SourceRow({}, problem=DAMAGED, origin=name) if files is None else self._row(files, origin)

    def _row(self, files: Files, origin: str) -> SourceRow:
        extension = next((e for e in IMAGE_SUFFIXES if e in files), None)
        if extension is None:
            return SourceRow({}, problem="no image", origin=origin)
        try:
            info = readable(json.loads(files.get("json", b"{}")))
            text = files["txt"].decode("utf-8-sig").strip() if "txt" in files else None
        except UnicodeDecodeError:
            return SourceRow({}, problem="caption is not UTF-8", origin=origin)
        except (ValueError, RecursionError):
            return SourceRow({}, problem="json does not parse", origin=origin)
        info = info if isinstance(info, dict) else {}
        if not text or self.settings.text_key:
            text = first_caption(info, self.text_keys) or text
        kept: dict[str, Any] = {
            "questions": answered_questions(_list(info, "questions")),
            "captions": weighted(_list(info, "captions")),
        }
        return SourceRow(
            {k: v for k, v in kept.items() if v}, partial(read_rgb, files[extension]), text or None, origin=origin
        )


def _list(info: dict[str, Any], key: str) -> list[Any]:
    value = info.get(key)
    return value if isinstance(value, list) else []


def weighted(captions: list[Any]) -> list[dict[str, Any]]:
    """Those of a sample's `captions` that can be drawn: {"text", "weight"}, with a weight above 0."""
    kept = []
    for entry in captions:
        entry = {"text": entry} if isinstance(entry, str) else entry
        text, weight = (
            (first_caption(entry, ("text",)), entry.get("weight", 1.0)) if isinstance(entry, dict) else (None, None)
        )
        if text and isinstance(weight, (int, float)) and 0 < weight < math.inf:
            kept.append({"text": text, "weight": weight})
    return kept


def samples(path: Path, start: int, content: bytes | None) -> Iterator[tuple[str, Files | None]]:
    """(key, files) of the samples from number `start` on. content=None: names only, nothing is read but the headers.

    A tar that breaks off or is damaged yields a last ("", None): for the sample in which it breaks and for all after
    it.
    """
    number, current, files = 0, None, Files()
    usual: set[str] | None = None  # extensions of the sample before
    damaged = True
    try:
        with tarfile.open(path, "r:") as tar:
            for key, extension, member in headers(tar):
                if current is not None and key != current:
                    if number >= start:
                        yield current, files
                    number, usual, files = number + 1, set(files), {}
                current = key
                if member is None:
                    files = {}
                    raise EOFError("the tar breaks off in this file")
                wanted = content is not None and number >= start
                files[extension] = _content(tar, member) if wanted else b""
        damaged = False
    except TAR_ERRORS:
        if usual is not None and usual != set(files):  # more of its files may lie after the damage
            files = {}
    if files:
        if number >= start:
            assert current is not None
            yield current, files
        number += 1
    if damaged and number >= start:
        yield "", None


def headers(tar: tarfile.TarFile) -> Iterator[tuple[str, str, tarfile.TarInfo | None]]:
    """(key, extension, header) of the files of a tar one after the other; None in place of a header whose file breaks
    off.

    As in webdataset, the key ends at the first dot of the base name; a file without a key or an extension is of no
    sample.
    Raises one of TAR_ERRORS for a header that is damaged and for a tar without an end.
    """
    size = Path(str(tar.name)).stat().st_size
    while (member := tar.next()) is not None:
        tar.members = []  # type: ignore[attr-defined]  # not in the stubs; tarfile would keep every header
        folder, slash, base = member.name.rpartition("/")
        stem, _, extension = base.partition(".")
        if not member.isreg() or member.issparse() or not (stem and extension):
            continue
        cut = member.offset_data + member.size > size
        yield folder + slash + stem, extension.lower(), None if cut else member
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    # tarfile takes any other block for the end, too
    if tar.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise tarfile.ReadError("a damaged header, or no end")


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None
    return file.read()
