"""Captions of a row, however its data set writes them: one text, a list of texts, or a list of objects with a text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

TEXT_KEYS = ("text_prompt", "text", "caption", "captions")
HEAVIEST = 1e9  # as in liquid_train/data/sample_schema.py: training takes no larger weight
CAPTION_KEYS = ("text", "caption", "raw", "sentence", "value")  # of an object in a list: COCO's, Flickr30k's, others'


def value_of(row: dict[str, Any], key: str) -> Any:
    """What a row has under a key; "a.b" also means b in the object a. None where it has nothing."""
    if key in row or "." not in key:
        return row.get(key)
    first, _, rest = key.partition(".")
    inner = row.get(first)
    return value_of(inner, rest) if isinstance(inner, dict) else None


def first_text(row: dict[str, Any], keys: tuple[str, ...]) -> str | None:
    """The first of the texts under `keys` that is not blank, without blanks around it."""
    values = (value_of(row, key) for key in keys)
    return next((value.strip() for value in values if isinstance(value, str) and value.strip()), None)


def read_captions(row: dict[str, Any], keys: tuple[str, ...]) -> tuple[str | None, dict[str, Any]]:
    """Captions under the first of `keys` that holds any: (KEY.txt, what KEY.json has of them).

    Of several, KEY.txt is the first, and KEY.json has all in `captions`, from which training draws by weight.
    """
    for key in keys:
        value = value_of(row, key)
        if isinstance(value, dict):  # of lists, as Hugging Face has lists of objects
            value = next((value[k] for k in CAPTION_KEYS if isinstance(value.get(k), list)), value)
        if captions := weighted(value if isinstance(value, list) else [value]):
            several = len(captions) > 1 or captions[0]["weight"] != 1
            return captions[0]["text"], {"captions": captions} if several else {}
    return None, {}


def weighted(entries: Iterable[Any]) -> list[dict[str, Any]]:
    """Those of a list's captions that can be drawn: {"text", "weight"}, with a weight above 0."""
    kept = []
    for entry in entries:
        entry = {"text": entry} if isinstance(entry, str) else entry
        if not isinstance(entry, dict):
            continue
        text, weight = first_text(entry, CAPTION_KEYS), entry.get("weight", 1.0)
        if text and isinstance(weight, (int, float)) and not isinstance(weight, bool) and 0 < weight <= HEAVIEST:
            kept.append({"text": text, "weight": weight})
    return kept
