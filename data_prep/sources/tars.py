"""The `webdataset` source: tars with one picture and its caption a sample, as img2dataset writes them."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.images import read_rgb
from data_prep.sources.base import FileSource, Item
from data_prep.sources.listed import TEXT_KEYS

IMAGE_SUFFIXES = ("png", "jpg", "jpeg", "webp")
DAMAGED = "the tar is damaged from here on"

Files = dict[str, bytes]  # extension -> content of one sample


class WebdatasetSource(FileSource):
    """KEY.jpg (png, jpeg, webp) with KEY.txt, or KEY.json with `caption`, `text` or `text_prompt`; KEY.json may have `questions`."""

    suffixes = (".tar",)
    keys = ("text_key",)

    def count(self, name: str) -> int:
        return sum(1 for _ in samples(self.files[name], 0, None))

    def read(self, name: str, start: int) -> Iterator[Item]:
        for key, files in samples(self.files[name], start, b""):
            origin = f"{name}, {key}"
            yield Item({}, problem=DAMAGED, origin=name) if files is None else self._item(files, origin)

    def _item(self, files: Files, origin: str) -> Item:
        extension = next((e for e in IMAGE_SUFFIXES if e in files), None)
        if extension is None:
            return Item({}, problem="no picture", origin=origin)
        try:
            info = json.loads(files.get("json", b"{}"))
            text = files["txt"].decode("utf-8").strip() if "txt" in files else None
        except UnicodeDecodeError:
            return Item({}, problem="caption is not UTF-8", origin=origin)
        except ValueError:
            return Item({}, problem="json does not parse", origin=origin)
        info = info if isinstance(info, dict) else {}
        keys = (self.settings.text_key,) if self.settings.text_key else TEXT_KEYS
        if text is None or self.settings.text_key:
            text = next((info[k].strip() for k in keys if isinstance(info.get(k), str)), text)
        kept: dict[str, Any] = {k: info[k] for k in ("questions", "captions") if isinstance(info.get(k), list)}
        return Item(kept, partial(read_rgb, files[extension]), text or None, origin=origin)


def samples(path: Path, start: int, content: bytes | None) -> Iterator[tuple[str, Files | None]]:
    """(key, files) of the samples from number `start` on. content=None: names only, nothing is read but the headers.

    A tar that breaks off or is damaged yields a last ("", None) for what cannot be read.
    """
    number, current, files = 0, None, Files()
    damaged = False
    try:
        with tarfile.open(path, "r:") as tar:
            for member in headers(tar):
                folder, slash, base = member.name.rpartition("/")
                stem, _, extension = base.partition(".")
                key = folder + slash + stem  # webdataset: the key ends at the first dot of the base name
                if current is not None and key != current:
                    if number >= start:
                        yield current, files
                    number, files = number + 1, {}
                current = key
                wanted = content is not None and number >= start
                files[extension.lower()] = _content(tar, member) if wanted else b""
    except (tarfile.TarError, OSError, EOFError):
        damaged = True
    if current is not None and number >= start:
        yield current, files
    number += current is not None
    if damaged and number >= start:
        yield "", None


def headers(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Regular files of a tar one after the other, without the list of all of them that tarfile keeps."""
    size = Path(str(tar.name)).stat().st_size
    while (member := tar.next()) is not None:
        tar.members = []  # type: ignore[attr-defined]  # not in the stubs
        if member.isreg():
            if member.offset_data + member.size > size:
                raise EOFError("the tar breaks off")
            yield member


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None
    return file.read()
