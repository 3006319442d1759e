"""The hashes that KEY.json keeps of a sample for finding near-duplicates (`tokenize.hashes`)."""

from __future__ import annotations

from typing import Any

from data_prep.encode.minhash import text_hash

HASHES = 1  # version, in the recipe: hashes of two versions cannot be compared


def with_text_hash(info: dict[str, Any], text: str | None) -> dict[str, Any]:
    """KEY.json with `text_hash` of what its sample says: KEY.txt, else all captions, questions with their answers,
    or messages. A sample that says nothing has none."""
    found = text_hash(text if text is not None else " ".join(_words(info)))
    return info if found is None else {**info, "text_hash": found}


def _words(info: dict[str, Any]) -> list[str]:
    words = [caption["text"] for caption in info.get("captions") or ()]
    for question in info.get("questions") or ():
        words += [question["question"], *question["answers"]]
    return words + [message["content"] for message in info.get("messages") or ()]
