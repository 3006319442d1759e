"""What text from anywhere (shards, prompts, questions, requests) passes before it is tokenized or stored.

    half of a surrogate pair    U+FFFD: JSON can spell it ("\\ud83d", half an emoji), UTF-8 and the tokenizers cannot
    both halves, one by one     the character that they spell
    NUL                         removed
    BOM at the beginning        removed

All other text stays as it is, to the byte.
"""

from __future__ import annotations

from typing import Any

BOM = "\ufeff"
NUL = "\0"


def normalize_text(text: str) -> str:
    """The text without what no tokenizer and no file takes."""
    if text.isascii():  # Python knows that without looking at the characters
        return text.replace(NUL, "") if NUL in text else text
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if NUL in text:
        text = text.replace(NUL, "")
    return text.lstrip(BOM) if text.startswith(BOM) else text


def normalize_json(value: Any) -> Any:
    """Parsed JSON with every text in it normalized, keys included. Raises RecursionError for JSON nested too deeply."""
    if isinstance(value, str):
        return normalize_text(value)
    if isinstance(value, list):
        return [normalize_json(v) for v in value]
    if isinstance(value, dict):
        return {normalize_text(k): normalize_json(v) for k, v in value.items()}
    return value
