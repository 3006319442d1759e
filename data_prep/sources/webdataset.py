"""The `webdataset` source: tars with one image and its captions a sample, as img2dataset writes them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

from data_prep.file_source import FileSource
from data_prep.settings import TokenizeSettings
from data_prep.source import DAMAGED, SourceRow, Survey
from data_prep.sources import SOURCES
from data_prep.sources._captions import TEXT_KEYS, read_captions, weighted
from data_prep.sources._kept import kept as kept_of
from data_prep.sources._keys import NeededKeys
from data_prep.sources._listed import answered_questions
from data_prep.sources._tar import Files, samples
from liquid_train.image_tokenizer.preprocess import image_suffixes, read_rgb
from liquid_train.text_normalizer import normalize_json, normalize_text


@SOURCES.register("webdataset")
class WebdatasetSource(FileSource):
    """KEY.jpg (or another image that Pillow reads) with KEY.txt, or KEY.json with `caption`, `text` or `text_prompt`;
    KEY.json may have `captions` and `questions`.

    tokenize.image_key is the extension of the image where a sample has several, tokenize.text_key a key of KEY.json.
    """

    suffixes = (".tar",)
    seeks = True
    keys = ("text_key", "image_key", "keep")

    def __init__(self, settings: TokenizeSettings, seed: int) -> None:
        super().__init__(settings, seed)
        self.text_keys = (settings.text_key,) if settings.text_key else TEXT_KEYS

    def survey(self, name: str) -> Survey:
        """Reads headers alone, and content as far as it takes to find tokenize.text_key and tokenize.keep. Raises
        UserError where no sample has these."""
        self._refuse_unknown_keys(name)
        rows, damage, omitted = 0, None, Counter[str]()
        for _, found in samples(self.files[name], 0, content=False, omitted=omitted):
            if found == DAMAGED and damage is None:
                damage = f"{name}, after {rows:,} samples"
            rows += 1
            if not isinstance(found, str):
                omitted.update(f".{e.rpartition('.')[2]} file" for e in found if not self._reads(e))
        return Survey(rows, omitted, damage)

    def _refuse_unknown_keys(self, name: str) -> None:
        needed = NeededKeys(self.settings, {"text_key": self.text_keys} if self.settings.text_key else {})
        if needed.complete:
            return
        for _, found in samples(self.files[name], 0, content=True):
            if needed.complete:
                break
            if isinstance(found, str):
                continue
            try:
                info = json.loads(found.get("json", b"{}"))
            except (ValueError, RecursionError):
                continue
            without = {extension: None for extension in found if extension != "json"}
            needed.look_at({**without, **(info if isinstance(info, dict) else {})})
        needed.refuse_missing(self.files[name])

    def _reads(self, extension: str) -> bool:
        return extension in ("txt", "json", self.settings.image_key) or f".{extension}" in image_suffixes()

    def rows_from(self, name: str, start: int) -> Iterator[SourceRow]:
        for key, found in samples(self.files[name], start, content=True):
            origin = normalize_text(f"{name}, {key}") if key else name
            if isinstance(found, str):
                yield SourceRow({}, problem=found, origin=origin)
                continue
            yield self._row(found, origin, {"__key__": normalize_text(key), "__url__": normalize_text(name)})

    def _image(self, files: Files) -> tuple[str, str | None]:
        """(extension of the sample's image, why there is none)."""
        if self.settings.image_key:
            extension = self.settings.image_key.lower().lstrip(".")
            return extension, None if extension in files else f"no {extension}"
        images = [extension for extension in files if f".{extension}" in image_suffixes()]
        if len(images) > 1:
            return "", "more than one image"
        return (images[0], None) if images else ("", "no image")

    def _row(self, files: Files, origin: str, of_tar: dict[str, str]) -> SourceRow:
        extension, problem = self._image(files)
        if problem:
            return SourceRow({}, problem=problem, origin=origin)
        try:
            info = normalize_json(json.loads(files.get("json", b"{}")))
            text = normalize_text(files["txt"].decode()).strip() if "txt" in files else None
        except UnicodeDecodeError:
            return SourceRow({}, problem="caption is not UTF-8", origin=origin)
        except (ValueError, RecursionError):
            return SourceRow({}, problem="json does not parse", origin=origin)
        info = info if isinstance(info, dict) else {}
        words, kept = read_captions(info, self.text_keys)
        text = words or text if self.settings.text_key else text or words
        if not self.settings.text_key and (captions := weighted(_list(info, "captions"))):
            kept["captions"] = captions
        if questions := answered_questions(_list(info, "questions")):
            kept["questions"] = questions
        return SourceRow(
            {**kept_of({**info, **of_tar}, self.settings.keep), **kept},
            partial(read_rgb, files[extension]),
            text or None,
            origin=origin,
        )


def _list(info: dict[str, Any], key: str) -> list[Any]:
    value = info.get(key)
    return value if isinstance(value, list) else []
