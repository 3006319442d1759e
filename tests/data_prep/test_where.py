"""The expressions of `liquid data filter --where`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_prep.tools.where import Subject, parse_where
from liquid_train.errors import UserError

INFO = {
    "width": 512,
    "height": 256,
    "source": "pairs",
    "score": 0.4,
    "big": 10**30,
    "safe": True,
    "captions": [{"text": "hi", "weight": 1}],
    "my field": 1,
    "tags": ["a", "b", 3],
    "android": 1,
    "nothing": None,
}
SAMPLE = Subject(
    {"key": "a/000001", "info": INFO, "text": "a red cat's\nhat", "codes": np.zeros((2, 4), np.uint16)}, 3, "s.tar"
)


@pytest.mark.parametrize(
    "text",
    [
        "width >= 512",
        "256 <= width < 1024 AND height<300",
        "not score < 0.3",
        "score < .3 or text contains 'red'",
        'length(captions) = 1 and captions.0.text = "hi"',
        "`my field` == 1 and android = 1",
        "safe and not safe = false",
        "key matches '^a/0+1$' and text matches '(?i)CAT'",
        "source in ['pairs', 'x'] and source NOT IN ['y']",
        "score is present and scores is missing and nothing is missing",
        "scores > 1 or width = 512",
        "tags contains 'a' and tags contains 3 and not tags contains 'c'",
        "aspect <= 2 and has_image and number = 3 and shard = 's.tar'",
        "-5 < width and 1e3 > width and +.5 > score and big > 1e29",
        "text = 'a red cat\\'s\nhat'",
        "(((width = 512)))",
        "not not not (width = 1)",
        "length(text) = 15",
    ],
)
def test_true(text: str) -> None:
    assert parse_where(text).reason(SAMPLE) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("width > 512", "where is false"),
        ("scores > 1", "where cannot be decided: no field scores"),
        ("not scores > 1", "where cannot be decided: no field scores"),
        ("scores > 1 and width = 1", "where is false"),
        ("captions.1.text = 'hi'", "where cannot be decided: no field captions.1.text"),
        ("width = '512'", "where cannot be decided: a number compared with a text"),
        ("safe > 0", "where cannot be decided: true or false compared with a number"),
        ("source", "where cannot be decided: source is a text, neither true nor false"),
        ("length(width) > 1", "where cannot be decided: width is a number, which has no length"),
        ("tags matches 'a'", "where cannot be decided: a list matched with a regular expression"),
        ("width contains 'a'", "where cannot be decided: a number asked whether it contains a text"),
    ],
)
def test_not_true(text: str, reason: str) -> None:
    assert parse_where(text).reason(SAMPLE) == reason


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "something is missing at its end"),
        ("width >", "something is missing at its end"),
        ("((width = 1)", "something is missing at its end"),
        ("width = 1 2", "'2' at character 11 does not belong there"),
        ("__import__('os')", "at character 11 does not belong there"),
        ("width ? 3", "'? 3' at character 7 cannot be understood"),
        ("text = 'open", "cannot be understood"),
        ("text matches '('", "is not a regular expression"),
        ("key in @no/such/file", "@no/such/file cannot be read"),
        ("not " * 4000 + "safe", "nested too deeply"),
        ("safe and " * 4000 + "safe", "20,000 are allowed"),
    ],
)
def test_refused(text: str, fault: str) -> None:
    with pytest.raises(UserError) as error:
        parse_where(text)
    assert fault in str(error.value) and str(error.value).startswith("--where")


def test_long_expressions() -> None:
    assert parse_where(" and ".join(["safe"] * 2000)).reason(SAMPLE) is None
    assert parse_where("(" * 2000 + "safe" + ")" * 2000).reason(SAMPLE) is None


def test_values_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "keys.txt").write_text("\ufeffa/000001\r\nb c\u2028d\n512\n", encoding="utf-8")
    where = parse_where(f'key in @{tmp_path}/keys.txt and width in @"{tmp_path}/keys.txt"')
    assert where.reason(SAMPLE) is None and list(where.files) == ["keys.txt"]
    assert parse_where(f"source not in @{tmp_path}/keys.txt").reason(SAMPLE) is None
