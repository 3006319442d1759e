"""Lists of images as published data sets write them: a row is taken or counted by reason, or the file is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from liquid_train.errors import UserError
from tests.source_files import draw, jsonl, rows_of

NO_TEXT = "no text_prompt or text or caption"
TWO = {"captions": [{"text": "A dog", "weight": 1.0}, {"text": "One dog", "weight": 1.0}]}


def told(rows: list[Any]) -> list[Any]:
    """Of each row its problem, or its text and KEY.json."""
    return [row.problem or (row.text, row.info) for row in rows]


def test_captions_in_a_list(tmp_path: Path) -> None:
    values = [
        ["A dog", " One dog\n"],
        [{"raw": "A dog"}, {"caption": "One dog"}],
        [{"text": "A dog", "weight": 3}],
        {"raw": ["A dog", "One dog"], "tokens": []},
        ["", None, 5, "A dog"],
        [],
        5,
    ]
    jsonl(tmp_path / "a.jsonl", [{"image": f"{n}.png", "caption": value} for n, value in enumerate(values)])
    rows, _, _ = rows_of("pairs", tmp_path / "a.jsonl")
    weighed = {"captions": [{"text": "A dog", "weight": 3}]}
    assert told(rows) == [
        ("A dog", TWO),
        ("A dog", TWO),
        ("A dog", weighed),
        ("A dog", TWO),
        ("A dog", {}),
        NO_TEXT,
        NO_TEXT,
    ]


def test_coco(tmp_path: Path) -> None:
    coco = {
        "info": {},
        "images": [{"id": 7, "file_name": "0.png"}, {"id": 8, "file_name": "1.png"}],
        "annotations": [
            {"image_id": 7, "caption": "A dog"},
            {"image_id": 9, "caption": "of no image"},
            {"image_id": 7, "caption": "One dog "},
        ],
    }
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    draw(tmp_path / "images", 1)
    rows, _, _ = rows_of("pairs", tmp_path / "coco.json", f"tokenize.images={tmp_path / 'images'}")
    assert told(rows) == [("A dog", TWO), NO_TEXT, "caption of an image that is not listed"]
    assert rows[0].image().shape == (64, 64, 3)
    karpathy = {
        "images": [{"filepath": "val", "filename": "0.png", "sentences": [{"raw": "A dog"}, {"raw": "One dog"}]}]
    }
    (tmp_path / "karpathy.json").write_text(json.dumps(karpathy, indent=1))
    rows, _, _ = rows_of("pairs", tmp_path / "karpathy.json")
    assert told(rows) == [("A dog", TWO)] and rows[0].origin == "karpathy.json, row 0 (val/0.png)"
    (tmp_path / "other.json").write_text(json.dumps({"info": 1, "rows": []}))
    assert rows_of("pairs", tmp_path / "other.json")[1]["other.json"].damage is not None


def test_tables(tmp_path: Path) -> None:
    """Flickr30k's two forms, and what else can be in a table."""
    (tmp_path / "results.csv").write_text(
        'image_name| comment_number| comment\n1.jpg| 0| A dog\n1.jpg| 1| One dog\n2.jpg| 0| A "cat\n3.jpg| 4   lost |\n'
        "4.jpg| 4 lost\n"
    )
    rows, _, _ = rows_of("pairs", tmp_path / "results.csv")
    cells = "a row with more or fewer cells than the table has columns"
    assert told(rows) == [("A dog", TWO), ('A "cat', {}), NO_TEXT, cells]
    with open(tmp_path / "annotations.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["raw", "filename"])
        writer.writerow([json.dumps(["A dog", "One dog"]), "1.jpg"])
        writer.writerow([str(["A dog", "One dog"]), "2.jpg"])
        writer.writerow(["two\nlines, [one]", "3.jpg"])
    rows, _, _ = rows_of("pairs", tmp_path / "annotations.csv")
    assert told(rows) == [("A dog", TWO), ("A dog", TWO), ("two\nlines, [one]", {})]
    (tmp_path / "d.csv").write_text("image,text\n,a\n,b\n0.png,c\n")
    assert told(rows_of("pairs", tmp_path / "d.csv")[0]) == ["no image_path", "no image_path", ("c", {})]
    (tmp_path / "b.csv").write_text('image,text\n0.png,"closed"\n1.png,"open\n2.png,lost\n3.png,lost\n')
    rows, surveys, _ = rows_of("pairs", tmp_path / "b.csv")
    assert told(rows) == [("closed", {}), *["the file is damaged from here on"] * 3]
    assert surveys["b.csv"].damage == "b.csv, row 1"
    (tmp_path / "c.tsv").write_text('image\ttext\n0.png\t"begins with a quote\n1.png\t"all ""in"" quotes"\n')
    assert told(rows_of("pairs", tmp_path / "c.tsv")[0]) == [('"begins with a quote', {}), ('all "in" quotes', {})]
    (tmp_path / "a.tsv").write_bytes(b"\xef\xbb\xbfimage\ttext\n0.png\tline\xe2\x80\xa8cut\n1.png\t\xff\n")
    assert told(rows_of("pairs", tmp_path / "a.tsv")[0]) == [("line\u2028cut", {}), "row is not UTF-8"]


@pytest.mark.parametrize(
    ("name", "text", "overrides", "message"),
    [
        ("cc3m.tsv", "a station\thttp://x/a.jpg\na hill\thttp://x/b.jpg\n", (), "only the URLs of images, fetch these"),
        ("laion.jsonl", '{"url": "http://x", "caption": "z"}\n', (), "it has url, caption: name .*fetch these first"),
        ("a.jsonl", '{"image": "0.png", "prompt": "p"}\n', (), "text_key has no value: .* it has image, prompt"),
        ("a.jsonl", '{"image": "0.png", "text": "p"}\n', ("text_key=alt",), "text_key=alt: .* does not have it"),
        ("a.jsonl", '{"pic": "0.png", "text": "p"}\n', ("image_key=img",), "image_key=img: .*it has pic, text"),
    ],
)  # fmt: skip
def test_a_key_that_no_row_has_is_refused(
    tmp_path: Path, name: str, text: str, overrides: tuple[str, ...], message: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        rows_of("pairs", tmp_path / name, *(f"tokenize.{override}" for override in overrides))


def test_nested_keys_and_images_that_are_urls(tmp_path: Path) -> None:
    rows = [{"img_path": "./0/a.png", "Task2": {"Caption": "long"}}, {"img_path": "HTTPS://x/a.png"}]
    jsonl(tmp_path / "a.jsonl", rows)
    found, _, _ = rows_of("pairs", tmp_path / "a.jsonl", "tokenize.text_key=Task2.Caption")
    assert told(found) == [("long", {}), "the image is a URL, no file"]


def test_json_arrays_with_nan_and_json_lines_in_a_json_file(tmp_path: Path) -> None:
    rows: list[Any] = [{"image": f"{n}.png", "caption": f"\u2028{n}", "score": float("nan")} for n in range(50)]
    for name, text in (
        ("array.json", json.dumps(rows)),
        ("indented.json", json.dumps(rows, indent=2)),
        ("lines.json", "\n".join(map(json.dumps, rows)) + "\n"),
    ):
        (tmp_path / name).write_text(text)
        found, surveys, _ = rows_of("pairs", tmp_path / name)
        assert told(found) == [(str(n), {}) for n in range(50)] and surveys[name].damage is None
    (tmp_path / "odd.json").write_text(
        '[{"image": "a.png", "text": "\\ud83d"}, 5, null, [1], {"image": "b", "text": 1e999}]'
    )
    assert told(rows_of("pairs", tmp_path / "odd.json")[0]) == [
        ("\ufffd", {}), *["row is not a JSON object"] * 3, NO_TEXT
    ]  # fmt: skip
    (tmp_path / "latin.json").write_bytes(b'[{"image": "a", "text": "\xff"}, {"image": "b", "text": "b"}]')
    assert told(rows_of("pairs", tmp_path / "latin.json")[0]) == ["row is not JSON", ("b", {})]


def test_an_array_longer_than_a_block_and_a_row_longer_than_one(tmp_path: Path) -> None:
    rows = [{"image": f"{n}.png", "text": f"é{n}" * (1_500_000 if n == 3 else 400)} for n in range(2000)]
    (tmp_path / "a.json").write_text(json.dumps(rows, ensure_ascii=False))
    found, _, _ = rows_of("pairs", tmp_path / "a.json")
    assert [row.text for row in found] == [row["text"] for row in rows]


def turns(*said: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(said)]


def test_chats_that_training_would_drop_are_counted(tmp_path: Path) -> None:
    no_path = "a conversation about an image that it does not name"
    cases: list[tuple[dict[str, Any], str | None]] = [
        ({"image": "a.png", "conversations": turns("<image>\nred?", "yes")}, None),
        ({"image": "a.png", "conversations": turns("<image>\nis <image> red?", "yes")}, "2 times <image> for 1 image"),
        ({"image": "a.png", "conversations": turns("<image>", "<image>")}, "2 times <image> for 1 image"),
        ({"video": "a.mp4", "conversations": turns("<image>\nred?", "yes")}, "a video or sound"),
        ({"video": "a.mp4", "conversations": turns("red?", "yes")}, "a video or sound"),
        ({"images": ["a.png"], "conversations": turns("red?", "yes")}, None),
        ({"images": ["a.png", "b.png"], "conversations": turns("<image> <image>", "yes")}, "more than one image"),
        ({"image": ["https://x/a.png"], "conversations": turns("red?", "yes")}, "the image is a URL, no file"),
        ({"image": {"bytes": ""}, "conversations": turns("red?", "yes")}, "the image is no path"),
        ({"image": None, "conversations": turns("<image>", "yes")}, no_path),
        ({"conversations": turns("red?", "yes")}, None),
    ]
    (tmp_path / "a.json").write_text(json.dumps([row for row, _ in cases]))
    rows, _, _ = rows_of("chat", tmp_path / "a.json")
    assert [row.problem for row in rows] == [problem for _, problem in cases]
    places = [sum(m["content"].count("<image>") for m in row.info["messages"]) for row in rows if not row.problem]
    assert places == [1, 1, 0]
    rows, _, _ = rows_of("chat", tmp_path / "a.json", "tokenize.image_key=img")
    assert rows[0].problem == "an image, but not under img"
