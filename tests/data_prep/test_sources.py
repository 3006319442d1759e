"""Lists and folders of images from real small files to the finished set: content, order, damage; and what
tokenize.input may be."""

import json
import os
from collections import Counter

import numpy as np
import pytest

from data_prep.file_source import identity
from data_prep.source import DAMAGED
from data_prep.sources import open_source
from data_prep.sources.text import TextSource
from tests.data_prep.test_tokenize import make_vq
from tests.source_files import (
    check_codes,
    check_every_start,
    codes_of,
    content,
    draw,
    dropped,
    image,
    jsonl,
    next_to,
    run,
    settings_of,
    tar,
    write_texts,
)


@pytest.fixture(scope="module")
def vq(tmp_path_factory):
    return make_vq(tmp_path_factory.mktemp("vq") / "a")


def test_pairs(tmp_path, vq):
    draw(tmp_path, 7)
    keys = ("text_prompt", "text", "caption")
    jsonl(
        tmp_path / "list.jsonl",
        [{"image_path": f"{n}.png", keys[n % 3]: f" image {n} é\n"} for n in range(7)] + [b"  "],
    )
    shards = run(tmp_path, vq, "pairs", tmp_path / "list.jsonl")
    samples = list(shards)
    assert [s["key"] for s in samples] == [f"{n:09d}" for n in range(7)] and [s["text"] for s in samples] == [
        f"image {n} é" for n in range(7)
    ]
    assert all(s["info"] == {"source": "pairs", "width": 64, "height": 64} for s in samples)
    assert [s.nsamples for s in shards.shards] == [3, 3, 1] and shards.index["inputs"] == [["list.jsonl", 7]]
    check_codes(vq, shards, range(7))
    check_every_start("pairs", tmp_path / "list.jsonl")


def test_pairs_with_damaged_rows(tmp_path, vq):
    draw(tmp_path / "images", 3)
    (tmp_path / "images" / "page.jpg").write_text("<html>404</html>")
    (tmp_path / "images" / "cut.png").write_bytes(content(0)[:60])
    good = [{"image_path": f"{n}.png", "text": f"image {n}"} for n in range(3)]
    bad = [
        b"{not json",
        b"[1, 2]",
        b'{"image_path": "0.png", "text": "\xff"}',
        {"image_path": "0.png"},
        {"image_path": "0.png", "text": " "},
        {"text": "no path"},
        {"image_path": 5, "text": "x"},
        {"image_path": "gone.png", "text": "x"},
        {"image_path": "page.jpg", "text": "x"},
        {"image_path": "cut.png", "text": "x"},
        {"image_path": "a\0b.png", "text": "x"},
        b"[" * 100_000,
        b'{"image_path": NaN, "text": "x"}',
    ]
    jsonl(tmp_path / "list.jsonl", [good[0], *bad[:6], good[1], *bad[6:], good[2]])
    shards = run(
        tmp_path,
        vq,
        "pairs",
        tmp_path / "list.jsonl",
        f"tokenize.images={tmp_path / 'images'}",
        "tokenize.max_bad=0.9",
    )
    assert [s["text"] for s in shards] == ["image 0", "image 1", "image 2"] and [s["key"] for s in shards] == [
        "000000000",
        "000000007",
        "000000015",
    ]
    no_text, no_path = "no text_prompt or text or caption", "no image_path"
    expected = [
        "row is not JSON",
        "row is not a JSON object",
        "row is not JSON",
        no_text,
        no_text,
        no_path,
        no_path,
        "missing image",
        "not an image",
        "broken image",
        "missing image",  # its name is normalized, as all text is: without NUL
        "row is not JSON",
        no_path,
    ]
    rows = [*range(1, 7), *range(8, 15)]
    found = dropped(shards)
    assert [(row, reason) for row, _, reason in found] == list(zip(rows, expected, strict=True)) and shards.index[
        "dropped"
    ] == dict(Counter(expected))
    assert found[7][1] == "list.jsonl, row 9 (gone.png)" or found[7][1] == "list.jsonl, row 9 (page.jpg)"
    check_every_start("pairs", tmp_path / "list.jsonl")


def test_names_of_the_keys(tmp_path, vq):
    draw(tmp_path, 1)
    jsonl(tmp_path / "list.jsonl", [{"file": "0.png", "alt": "this", "text": "that"}])
    shards = run(tmp_path, vq, "pairs", tmp_path / "list.jsonl", "tokenize.image_key=file", "tokenize.text_key=alt")
    assert [s["text"] for s in shards] == ["this"]
    assert shards.index["recipe"]["source"]["image_key"] == "file"


def test_odd_text_is_written_and_read_back(tmp_path, vq):
    draw(tmp_path, 1)
    texts = [
        "\ud83d",
        "a\udfffb",
        "\ud83d\ude00",
        "nul \0 and \x1b",
        "\u202eright to left\u2028line",
        "é" * 3,
        "\U0010ffff",
        '"quoted" \\ud800',
    ]
    jsonl(tmp_path / "list.jsonl", [{"image_path": "0.png", "text": t} for t in texts])
    jsonl(tmp_path / "vqa.jsonl", [{"image_path": "0.png", "question": f"what? {t}", "answer": t} for t in texts])
    expected = ["\ufffd", "a\ufffdb", "😀", "nul  and \x1b", *texts[4:]]
    shards = run(tmp_path / "pairs", vq, "pairs", tmp_path / "list.jsonl")
    assert [s["text"] for s in shards] == expected and shards.index["totals"]["text_characters"] == sum(
        map(len, expected)
    )
    questions = [s["info"]["questions"][0] for s in run(tmp_path / "vqa", vq, "vqa", tmp_path / "vqa.jsonl")]
    assert [(q["question"], q["answers"]) for q in questions] == [(f"what? {t}", [t]) for t in expected]


def test_vqa(tmp_path, vq):
    draw(tmp_path, 6)
    asked = [{"question": "what?", "answers": ["a", "b"]}, {"question": "how many?", "answers": ["3"]}]
    rows = [
        {"image_path": "0.png", "questions": asked},
        {"image_path": "1.png", "question": "what?", "answer": "a", "caption": " words "},
        {
            "image_path": "2.png",
            "questions": [
                {"question": "what?", "answers": [{"answer": "a", "n": 1}, {"answer": None}]},
                {"question": "none"},
            ],
        },
        {"image_path": "3.png", "question": "how many?", "answers": 3, "answer": None},
        {"image_path": "4.png", "question": "how many?", "answers": None, "answer": 4.5},
        {"image_path": "5.png", "questions": []},
        {"image_path": "5.png", "questions": ["what?"]},
        {
            "image_path": "5.png",
            "questions": [
                {"question": " ", "answers": ["a"]},
                {"question": "what?", "answers": [" "]},
                {"question": 1, "answer": "a"},
            ],
        },
        {"image_path": "5.png", "caption": "a caption alone"},
    ]
    jsonl(tmp_path / "list.jsonl", rows)
    shards = run(tmp_path, vq, "vqa", tmp_path / "list.jsonl", "tokenize.max_bad=0.5")
    samples = list(shards)
    what = [{"question": "what?", "answers": ["a"]}]
    expected = [
        asked,
        what,
        what,
        [{"question": "how many?", "answers": ["3"]}],
        [{"question": "how many?", "answers": ["4.5"]}],
    ]
    assert [s["info"]["questions"] for s in samples] == expected and [s.get("text") for s in samples] == [
        None,
        "words",
        None,
        None,
        None,
    ]
    assert shards.index["dropped"] == {"no question with an answer": 4} and shards.index["totals"]["questions"] == 6
    assert [row for row, *_ in dropped(shards)] == [5, 6, 7, 8]
    check_codes(vq, shards, range(5))
    check_every_start("vqa", tmp_path / "list.jsonl")


TURNS = [
    {"from": "human", "value": "<image>\nWhat is it?"},
    {"from": "gpt", "value": "An image."},
    {"from": "human", "value": "Sure?"},
    {"from": "gpt", "value": "Yes é."},
]


MESSAGES = [
    {"role": "user", "content": "<image>\nWhat is it?"},
    {"role": "assistant", "content": "An image."},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "Yes é."},
]


HELLO = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi"},
]


@pytest.mark.parametrize("form", ["array", "lines", "array with a byte order mark"])
def test_chat(tmp_path, vq, form):
    draw(tmp_path / "pictures", 4)
    rows = [
        {"id": 0, "image": "pictures/0.png", "conversations": TURNS},
        {"id": "text only", "conversations": TURNS[2:]},
        {"image": "pictures/1.png", "messages": HELLO},
        {"image": ["pictures/2.png"], "conversations": TURNS[:2]},
        {"image": "", "messages": HELLO},
        {"conversations": TURNS},
        {"image": ["pictures/2.png", "pictures/3.png"], "conversations": TURNS},
        {"image": "pictures/2.png", "conversations": []},
        {"image": "pictures/2.png", "conversations": TURNS[1:]},
        {"image": "pictures/2.png", "conversations": TURNS[:1]},
        {"image": "pictures/2.png", "conversations": [*TURNS[:1], {"from": "gpt"}]},
        {"image": "pictures/2.png", "conversations": [*TURNS[:1], {"from": ["gpt"], "value": "x"}]},
        {"image": "pictures/gone.png", "conversations": TURNS},
        ["no object"],
        {"image": "pictures/3.png", "conversations": TURNS},
    ]
    path = tmp_path / ("list.jsonl" if form == "lines" else "list.json")
    if form == "lines":
        jsonl(path, rows)
    else:
        path.write_bytes((b"\xef\xbb\xbf" if "mark" in form else b" \n") + json.dumps(rows, indent=1).encode())
    shards = run(tmp_path, vq, "chat", path, "tokenize.max_bad=0.9")
    samples = {int(s["key"]): s for s in shards}
    with_image = [*HELLO[:1], {"role": "user", "content": "<image>\nHello"}, HELLO[2]]
    expected = {0: MESSAGES, 1: MESSAGES[2:], 2: with_image, 3: MESSAGES[:2], 4: HELLO, 14: MESSAGES}
    assert {n: s["info"]["messages"] for n, s in samples.items()} == expected and {
        n for n, s in samples.items() if "codes" in s
    } == {0, 2, 3, 14}
    assert samples[1]["info"] == {"messages": MESSAGES[2:], "source": "chat"} and samples[0]["info"]["width"] == 64
    no = "no conversation that a user begins and an assistant answers"
    found = {
        5: "a conversation about an image that it does not name",
        6: "more than one image",
        7: no,
        8: no,
        9: no,
        10: no,
        11: no,
        12: "missing image",
        13: "row is not a JSON object",
    }
    assert {row: reason for row, _, reason in dropped(shards)} == found and shards.index["totals"]["messages"] == 18
    assert [
        np.array_equal(samples[n]["codes"], c) for n, c in zip((0, 2, 3, 14), codes_of(vq, 0, 1, 2, 3), strict=True)
    ] == [True] * 4
    check_every_start("chat", path)


@pytest.mark.parametrize(
    ("damage", "kept", "lost", "reason"),
    [
        (lambda text: text[: len(text) // 2], 2, 1, DAMAGED),
        (lambda text: text.replace('"../1.png"', "../1.png"), 1, 3, DAMAGED),
        (lambda text: text + "]", 4, 1, DAMAGED),
        (lambda text: "", 0, 1, DAMAGED),
        (lambda text: '{"data": ' + text + "}", 0, 1, "the file is not a JSON array"),
        (lambda text: "<html>", 0, 1, "the file is not a JSON array"),
    ],
)
def test_a_broken_json_array(tmp_path, vq, damage, kept, lost, reason):
    draw(tmp_path, 4)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "broken.json").write_text(
        damage(json.dumps([{"image": f"../{n}.png", "conversations": TURNS} for n in range(4)]))
    )
    (tmp_path / "a" / "whole.json").write_text(json.dumps([{"messages": HELLO, "image": "../0.png"}]))
    shards = run(tmp_path, vq, "chat", tmp_path / "a", "tokenize.max_bad=0.9", "tokenize.allow_broken_files=true")
    assert shards.index["dropped"] == {reason: lost} and dropped(shards)[0][:2] == (kept, f"broken.json, row {kept}")
    assert len(shards) == kept + 1 and list(shards)[-1]["info"]["messages"][2] == HELLO[2]
    check_every_start("chat", tmp_path / "a")


def test_chats_that_have_no_image_at_all(tmp_path, vq):
    (tmp_path / "a.json").write_text(json.dumps([{"messages": HELLO}] * 4))
    shards = run(tmp_path, vq, "chat", tmp_path / "a.json")
    assert [s["info"]["messages"] for s in shards] == [HELLO] * 4 and shards.index["codes"] == {
        "used": 0,
        "perplexity": 1.0,
    }


def test_folder(tmp_path, vq):
    root = tmp_path / "pictures"
    draw(root / "b", 2)
    draw(root / "a" / "deep", 1)
    (root / "c.v1.jpeg").write_bytes(content(3, "JPEG"))
    (root / "D.PNG").write_bytes(content(4))
    for name, text in (
        ("b/0.txt", " image b0 \n"),
        ("a/deep/0.txt", ""),
        ("c.v1.txt", "c"),
        ("lonely.txt", "no image"),
        ("notes.md", ""),
    ):
        (root / name).write_text(text)
    (root / "e.png").write_bytes(content(5))
    (root / "e.txt").write_bytes(b"\xff\xfe")
    (root / "f.png").symlink_to(root / "nowhere.png")
    (root / "g.gif").write_bytes(b"")
    shards = run(tmp_path, vq, "folder", root, "tokenize.max_bad=0.5")
    assert [(s["key"], s.get("text")) for s in shards] == [
        ("000000000", None),
        ("000000001", None),
        ("000000002", "image b0"),
        ("000000003", None),
        ("000000004", "c"),
    ]
    found = [(5, "e.png", "caption is not UTF-8"), (6, "f.png", "missing image"), (7, "g.gif", "not an image")]
    assert dropped(shards) == found and shards.index["no_caption"] == 3
    samples = list(shards)
    assert [
        np.array_equal(samples[i]["codes"], c) for i, c in zip((0, 1, 2, 3), codes_of(vq, 4, 0, 0, 1), strict=True)
    ] == [True] * 4
    check_every_start("folder", root)
    recipe = open_source(settings_of("folder", root), 0).recipe()
    (root / "b" / "1.txt").write_text("a caption that was not there")
    assert open_source(settings_of("folder", root), 0).recipe() != recipe


def test_inputs_by_braces_globs_and_folders(tmp_path):
    for name in ("a/x.jsonl", "b/x.jsonl", "b/deep/y.jsonl", "c/x.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_texts(tmp_path / name, [{"text": name}])
    (tmp_path / "b" / "notes.md").write_text("not read")
    cases = {
        "{a,b}/x.jsonl": ["a/x.jsonl", "b/x.jsonl"],
        "?/x.jsonl": ["a/x.jsonl", "b/x.jsonl", "c/x.jsonl"],
        "b": ["b/deep/y.jsonl", "b/x.jsonl"],
        "**/y.jsonl": ["b/deep/y.jsonl"],
        "{c,a}": ["a/x.jsonl", "c/x.jsonl"],
        "{a,a}/x.jsonl": ["a/x.jsonl"],
        "{a/../a,a}/x.jsonl": ["a/x.jsonl"],
    }
    for number, (pattern, expected) in enumerate(cases.items()):
        shards = run(tmp_path / str(number), [], "text", f"{tmp_path}/{pattern}")
        assert [s["text"] for s in shards] == expected, pattern
    assert [name for name, _ in run(tmp_path / "two", [], "text", f"{tmp_path}/{{a,b}}/x.jsonl").index["inputs"]] == [
        "a/x.jsonl",
        "b/x.jsonl",
    ]


def test_a_name_with_braces_and_a_name_that_is_not_utf8(tmp_path):
    write_texts(tmp_path / "{odd,name}[1].jsonl", [{"text": "here"}])
    assert [s["text"] for s in run(tmp_path / "1", [], "text", tmp_path / "{odd,name}[1].jsonl")] == ["here"]
    folder = tmp_path / "odd"
    folder.mkdir()
    write_texts(folder / os.fsdecode(b"\xff.jsonl"), [{"text": "there"}, b"{"])
    shards = run(tmp_path / "2", [], "text", folder, "tokenize.max_bad=0.5")
    assert [s["text"] for s in shards] == ["there"] and dropped(shards)[0][1] == "\ufffd.jsonl, row 1"


@pytest.mark.parametrize(
    ("source", "overrides", "message"),
    [
        (
            "text",
            ["tokenize.input=null"],
            r"tokenize.input has no value: tokenize.source=text reads files \(.jsonl, .jsonl.gz, .*; give a file, a "
            r"folder, or a pattern",
        ),
        ("text", ["tokenize.input={tmp}/gone.jsonl"], r"tokenize.input=.*gone.jsonl: no such file or folder"),
        ("text", ["tokenize.input={tmp}/*.gz"], r"tokenize.input=.*: no such file or folder"),
        ("pairs", ["tokenize.input={tmp}/empty"], r"tokenize.input=.*empty: no .jsonl, .*.tsv file in that folder"),
        (
            "webdataset",
            ["tokenize.input={tmp}/a.jsonl"],
            r"tokenize.input=.*a.jsonl: this source reads .tar files; choose another tokenize.source",
        ),
        (
            "text",
            ["tokenize.input={tmp}/none.jsonl"],
            r"tokenize.input=.*none.jsonl: no rows in it; tokenize.source=text found nothing to tokenize",
        ),
        ("text", ["tokenize.input={tmp}/{{a"], r"tokenize.input=.*: a brace without its counterpart"),
        (
            "webdataset",
            ["tokenize.images={tmp}"],
            r"tokenize.images=.*: tokenize.source=webdataset does not use it; leave it out",
        ),
        (
            "text",
            ["tokenize.image_key=image"],
            r"tokenize.image_key=image: tokenize.source=text does not use it",
        ),
        ("vqa", ["tokenize.text_key=text"], r"tokenize.text_key=text: tokenize.source=vqa does not use it"),
        ("folder", ["tokenize.text_key=text"], r"tokenize.text_key=text: tokenize.source=folder does not use it"),
        (
            "folder",
            ["tokenize.input={tmp}/a.jsonl"],
            r"tokenize.input=.*a.jsonl: no such folder; tokenize.source=folder reads the images below one",
        ),
        ("folder", ["tokenize.input=null"], r"tokenize.input=None: no such folder"),
        ("folder", ["tokenize.input={tmp}/empty"], r"tokenize.input=.*empty: no rows in it"),
        ("text", ["tokenize.copies=2"], r"tokenize.copies=2: tokenize.source=text does not use it"),
        (
            "pairs",
            ["tokenize.images={tmp}/gone"],
            r"tokenize.images=.*gone: no such folder; paths of images in the list are taken from there",
        ),
        ("images", [], r"tokenize.source=images: no such source; one of chat, easy_vqa, folder, ids, pairs"),
    ],
)
def test_inputs_that_cannot_work_are_refused(tmp_path, vq, source, overrides, message):
    write_texts(tmp_path / "a.jsonl", [{"text": "x"}])
    (tmp_path / "none.jsonl").write_text("\n\n")
    (tmp_path / "empty").mkdir()
    where = (
        tmp_path
        if source in ("folder",)
        else tmp_path / ("a.tar" if source == "webdataset" and "input" not in overrides[0] else "a.jsonl")
    )
    tar(tmp_path / "a.tar", [])
    with pytest.raises(ValueError, match=message):
        run(tmp_path, vq, source, where, *(o.format(tmp=tmp_path) for o in overrides))
    assert not (tmp_path / "set" / "index.json").exists()


def test_shards_are_read_on_from_where_the_last_one_ended(tmp_path, monkeypatch):
    opened = Counter()
    rows_from = TextSource.rows_from

    def counted(self, name, start):
        opened[name] += 1
        return rows_from(self, name, start)

    monkeypatch.setattr(TextSource, "rows_from", counted)
    for name in ("a.jsonl", "b.jsonl"):
        write_texts(tmp_path / name, [{"text": f"{name} {n}"} for n in range(50)])
    shards = run(next_to(tmp_path, "out"), [], "text", tmp_path)
    assert [s["text"] for s in shards] == [f"{name} {n}" for name in ("a.jsonl", "b.jsonl") for n in range(50)] and len(
        shards.shards
    ) == 34
    assert opened == {"a.jsonl": 1, "b.jsonl": 1}


def test_two_readings_at_once_do_not_disturb_each_other(tmp_path):
    write_texts(tmp_path / "a.jsonl", [{"text": str(n)} for n in range(10)])
    source = open_source(settings_of("text", tmp_path / "a.jsonl"), 0)
    first = source.read("a.jsonl", 0)
    assert [next(first).text for _ in range(3)] == ["0", "1", "2"]
    second = source.read("a.jsonl", 3)
    assert [next(second).text, next(first).text, next(second).text] == ["3", "3", "4"]
    second.close()
    assert [i.text for i in source.read("a.jsonl", 5)] == list("56789") and [i.text for i in first] == list("456789")


def test_a_changed_input_is_another_recipe(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"a" * 100)
    one = identity(path, 64)
    path.write_bytes(b"a" * 101)
    assert identity(path, 64) != one
    path.write_bytes(b"b" + b"a" * 99)
    assert identity(path, 64) != one


def test_multiratio_and_center_say_what_they_did(tmp_path, vq):
    for number, (width, height) in enumerate([(90, 60), (64, 64), (50, 60), (200, 80), (33, 64)]):
        image(number, 512, 512).resize((width, height)).save(tmp_path / f"{number}.png")
    shards = run(
        next_to(tmp_path, "m"),
        vq,
        "folder",
        tmp_path,
        "tokenize.crop=multiratio",
        "tokenize.sizes=[80x48,64x64,48x80]",
    )
    infos = [s["info"] for s in shards]
    assert [(i["width"], i["height"]) for i in infos] == [(80, 48), (64, 64), (64, 64), (48, 80)] and all(
        i["multiratio"] is True for i in infos
    )
    assert [s["codes"].shape for s in shards] == [(6, 10), (8, 8), (8, 8), (10, 6)]
    assert [(i["original_width"], i["original_height"]) for i in infos] == [(90, 60), (64, 64), (50, 60), (33, 64)]
    assert shards.index["dropped"] == {"aspect ratio above 2": 1}  # past max_bad, were it counted as damage
    center = [
        s["info"]
        for s in run(next_to(tmp_path, "c"), vq, "folder", tmp_path, "tokenize.crop=center", "tokenize.size=32")
    ]
    assert all((i["width"], i["height"]) == (32, 32) and "multiratio" not in i for i in center) and len(center) == 4
