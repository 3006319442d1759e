"""What text from anywhere passes, and that ordinary text passes as it is."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liquid_train.text_normalizer import normalize_json, normalize_text


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("a red \ud83d circle", "a red \ufffd circle"),
        ("\ude00\ud83d", "\ufffd\ufffd"),  # the halves in the wrong order
        ("\ud83d", "\ufffd"),
        ("\ud83d\ude00", "\N{GRINNING FACE}"),  # a pair that somebody escaped half by half
        ("a\0b\0", "ab"),
        ("é\0\ud800", "é\ufffd"),
        ("\ufeffa", "a"),
        ("\0\ufeff\ufeffa", "a"),
        ("a\ufeffb", "a\ufeffb"),  # a zero-width no-break space, as older texts have it
        ("\0", ""),
        ("", ""),
    ],
)
def test_what_no_tokenizer_takes(text: str, normal: str) -> None:
    assert normalize_text(text) == normal == normalize_text(normal)
    normal.encode()


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufeff")))
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert normalize_text(text) is text or normalize_text(text) == text


def test_json_is_normalized_at_any_depth() -> None:
    value = json.loads('{"\\ud800": [{"a": "\\u0000b", "c": 1, "d": null}, "\\ufeffe"], "f": true}')
    assert normalize_json(value) == {"\ufffd": [{"a": "b", "c": 1, "d": None}, "e"], "f": True}
