"""Tars, archives of texts and parquet files to the finished set: content, order, and damage at every kind of place."""

import io
import json
import tarfile
from collections import Counter

import numpy as np
import pytest
import zstandard

from data_prep.sources import open_source
from tests.data_prep.test_tokenize import make_vq
from tests.source_files import (
    check_codes,
    check_every_start,
    codes_of,
    content,
    draw,
    dropped,
    items,
    next_to,
    rows_of,
    run,
    settings_of,
    tar,
    write_texts,
)


@pytest.fixture(scope="module")
def vq(tmp_path_factory):
    return make_vq(tmp_path_factory.mktemp("vq") / "a")


def test_webdataset(tmp_path, vq):
    asked = {"caption": "from json", "questions": [{"question": "q", "answer": "a"}, "odd"]}
    worded = ["plain", {"text": "heavy", "weight": 2}, {"text": "never", "weight": 0}, {"weight": 1}]
    third = {"text_prompt": "", "text": 5, "caption": "third", "captions": worded}
    members = [
        ("x/0.png", content(0)),
        ("x/0.txt", "image 0 é\n".encode()),
        ("x/1.JPG", content(1, "JPEG")),
        ("x/1.json", json.dumps(asked).encode()),
        ("x/._1.JPG", b"of a Mac"),
        ("README", b"no sample"),
        ("__meta__", b"{}"),
        ("2.webp", content(2, "WEBP")),
        ("2.json", json.dumps(third).encode()),
        ("3.jpeg", content(3, "JPEG")),
        ("3.json", b"[]"),
        ("4.txt", b"no image"),
        ("5.png", content(5)),
        ("5.json", b"{broken"),
        ("6.png", content(6)),
        ("6.txt", b"\xff"),
        ("7.seg.png", content(7)),
        ("8.png", content(8)),
        ("8.txt", b"  "),
        ("8.json", b'{"caption": "where the txt is blank"}'),
        ("9.png", b"GIF89a"),
        ("10.png", content(10)),
        ("10.json", b'{"caption": "lone \\ud800"}'),
        ("11.png", content(11)),
        ("11.json", b"[" * 100_000),
    ]
    tar(tmp_path / "a.tar", members)
    shards = run(tmp_path, vq, "webdataset", tmp_path / "a.tar", "tokenize.max_bad=0.6")
    samples = {int(s["key"]): s for s in shards}
    texts = {0: "image 0 é", 1: "from json", 2: "third", 3: None, 8: "where the txt is blank", 10: "lone \ufffd"}
    assert {n: s.get("text") for n, s in samples.items()} == texts and samples[1]["info"]["questions"] == [
        {"question": "q", "answers": ["a"]}
    ]
    assert samples[2]["info"]["captions"] == [{"text": "plain", "weight": 1.0}, {"text": "heavy", "weight": 2}]
    found = {
        4: "no image",
        5: "json does not parse",
        6: "caption is not UTF-8",
        7: "no image",
        9: "not an image",
        11: "json does not parse",
    }
    assert {row: reason for row, _, reason in dropped(shards)} == found and dropped(shards)[0][1] == "a.tar, 4"
    assert all(np.array_equal(samples[n]["codes"], c) for n, c in zip((0, 8, 10), codes_of(vq, 0, 8, 10), strict=True))
    check_every_start("webdataset", tmp_path / "a.tar")


def test_webdataset_text_key(tmp_path, vq):
    tar(
        tmp_path / "a.tar",
        [("0.png", content(0)), ("0.txt", b"txt"), ("0.json", b'{"alt": "this", "caption": "that"}')],
    )
    assert [s["text"] for s in run(tmp_path, vq, "webdataset", tmp_path / "a.tar", "tokenize.text_key=alt")] == ["this"]


DAMAGED = "the file is damaged from here on"
ALLOWED = ("tokenize.max_bad=0.9", "tokenize.allow_broken_files=true")


def offsets(path):
    """name -> (offset of its header, of its data) in a tar."""
    with tarfile.open(path) as file:
        return {m.name: (m.offset, m.offset_data) for m in file}


@pytest.mark.parametrize(
    ("at", "kept"),
    [
        ("0.png header", 0),
        ("0.png within the data", 0),
        ("0.txt data", 0),
        ("6.png header", 6),
        ("6.png within the header", 6),
        ("6.png data", 6),
        ("6.png within the data", 6),
        ("6.txt header", 6),
        ("6.txt within the header", 6),
        ("6.txt data", 6),
        ("9.txt data", 9),
        ("end mark", 10),
    ],
)
def test_a_tar_cut_anywhere(tmp_path, vq, at, kept):
    """Whole samples before the cut stay; the one that lost a file is not taken for one without a caption."""
    members = [
        (f"{n}.{e}", content(n) if e == "png" else f"image {n}".encode()) for n in range(10) for e in ("png", "txt")
    ]
    tar(tmp_path / "0.tar", members)
    tar(tmp_path / "1.tar", [("0.png", content(0)), ("0.txt", b"whole")])
    name, place = at.partition(" ")[::2]
    header, data = offsets(tmp_path / "0.tar")["9.txt" if name == "end" else name]
    size = {
        "header": header,
        "within the header": header + 100,
        "data": data,
        "within the data": data + 100,
        "mark": data + 512,
    }[place]
    (tmp_path / "0.tar").write_bytes((tmp_path / "0.tar").read_bytes()[:size])
    shards = run(tmp_path, vq, "webdataset", tmp_path / "{0,1}.tar", *ALLOWED)
    assert [s["text"] for s in shards] == [*(f"image {n}" for n in range(kept)), "whole"]
    assert dropped(shards) == [(kept, "0.tar", DAMAGED)] and shards.index["inputs"] == [
        ["0.tar", kept + 1],
        ["1.tar", 1],
    ]
    check_every_start("webdataset", tmp_path / "0.tar")


@pytest.mark.parametrize("junk", [b"", b"no tar", b"\x1f\x8b" + b"0" * 5000, b"x" * 512])
def test_what_is_no_tar(tmp_path, vq, junk):
    (tmp_path / "0.tar").write_bytes(junk)
    tar(tmp_path / "1.tar", [("0.png", content(0))])
    shards = run(tmp_path, vq, "webdataset", tmp_path / "?.tar", *ALLOWED)
    assert dropped(shards) == [(0, "0.tar", DAMAGED)] and len(shards) == 1


def test_a_damaged_header_in_a_tar(tmp_path, vq):
    members = [
        (f"{n}.{e}", content(n) if e == "png" else f"image {n}".encode()) for n in range(10) for e in ("png", "txt")
    ]
    tar(tmp_path / "0.tar", members)
    broken = bytearray((tmp_path / "0.tar").read_bytes())
    start = offsets(tmp_path / "0.tar")["4.png"][0]
    broken[start : start + 512] = b"\xaa" * 512
    (tmp_path / "0.tar").write_bytes(broken)
    shards = run(tmp_path, vq, "webdataset", tmp_path / "0.tar", *ALLOWED)
    assert [s["text"] for s in shards] == [f"image {n}" for n in range(4)] and dropped(shards) == [
        (n, "0.tar", DAMAGED) for n in range(4, 10)
    ]


def test_random_damage_of_a_tar_never_ends_the_reading(tmp_path):
    rng = np.random.default_rng(0)
    tar(
        tmp_path / "a.tar",
        [(f"{n}.{e}", bytes([n]) * 700) for n in range(6) for e in ("png", "txt", "json")]
        + [("long" * 60 + ".png", b"x")],
    )
    whole, settings = (tmp_path / "a.tar").read_bytes(), settings_of("webdataset", tmp_path / "a.tar")
    for _ in range(300):
        damaged = bytearray(whole[: rng.integers(len(whole)) if rng.random() < 0.3 else None])
        header = 512 * rng.integers(len(whole) // 512)
        for place in header + rng.integers(0, 512, rng.integers(1, 20)):
            if place < len(damaged):
                damaged[place] = rng.choice([0, 48, 57, 255, int(rng.integers(256))])
        (tmp_path / "a.tar").write_bytes(damaged)
        source = open_source(settings, 0)
        assert source.count("a.tar") == len(list(source.read("a.tar", 0)))


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.json.gz", "a.json.zst"])
def test_text(tmp_path, name):
    rows = [{"text": f" document {n} é\n\nwith paragraphs\n", "url": "x"} for n in range(5)] + [
        b"",
        b"{",
        {"no": "text"},
        {"text": ["x"]},
        {"text": " \n"},
        b"5",
        {"text": "last"},
    ]
    write_texts(tmp_path / name, rows)
    shards = run(tmp_path, ["vq.config=not-needed.yaml"], "text", tmp_path / name, "tokenize.max_bad=0.6")
    samples = list(shards)
    assert [s["text"] for s in samples] == [*(f" document {n} é\n\nwith paragraphs\n" for n in range(5)), "last"]
    assert [s["key"] for s in samples] == [f"{n:09d}" for n in (0, 1, 2, 3, 4, 10)] and all(
        s["info"] == {"source": "text"} and "codes" not in s for s in samples
    )
    found = [(5, "row is not JSON"), (6, "no text"), (7, "no text"), (8, "no text"), (9, "row is not a JSON object")]
    assert [(row, reason) for row, _, reason in dropped(shards)] == found and shards.fingerprint is None
    check_every_start("text", tmp_path / name)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
@pytest.mark.parametrize("damage", ["cut", "cut at the end", "flipped", "empty", "no archive"])
def test_a_damaged_archive_is_told(tmp_path, name, damage):
    rng = np.random.default_rng(0)
    documents = [{"text": f"{n} " + " ".join(map(str, rng.integers(0, 10**9, 60)))} for n in range(800)]
    write_texts(tmp_path / name, documents)
    write_texts(tmp_path / "b.jsonl", [{"text": "whole"}])
    whole = bytearray((tmp_path / name).read_bytes())
    if damage == "flipped":
        whole[len(whole) // 2 : len(whole) // 2 + 100] = bytes(100)
    (tmp_path / name).write_bytes(
        {
            "cut": whole[: len(whole) // 2],
            "cut at the end": whole[:-9],
            "empty": b"",
            "no archive": b"plain text\n",
        }.get(damage, whole)
    )
    shards = run(tmp_path, [], "text", f"{tmp_path}/{{{name},b.jsonl}}", *ALLOWED)
    texts = [s["text"] for s in shards]
    if (name, damage) == ("a.jsonl.gz", "empty"):  # as gzip itself has it
        assert texts == ["whole"] and not shards.index["dropped"]
        return
    reasons = Counter(reason for *_, reason in dropped(shards))
    assert (reasons[DAMAGED] == 1 or damage == "flipped" and reasons[DAMAGED] > 1) and texts[-1] == "whole"
    kept = [t for t in texts[:-1] if t in {d["text"] for d in documents}]
    assert kept == [d["text"] for d in documents[: len(kept)]]
    assert (len(kept) > 100) == damage.startswith("cut") or damage == "flipped"
    settings = settings_of("text", tmp_path / name)
    for start in (1, len(kept), len(kept) + 1):
        assert items(settings, name, start) == items(settings, name, 0)[start:]


def test_zst_of_several_frames_and_of_a_large_window(tmp_path):
    lines = [json.dumps({"text": f"document {n}"}).encode() + b"\n" for n in range(6)]
    skippable = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"
    large = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(window_log=28, enable_ldm=True)
    )
    (tmp_path / "a.jsonl.zst").write_bytes(
        zstandard.compress(b"".join(lines[:3]) + lines[3][:5]) + skippable + zstandard.compress(lines[3][5:])
    )
    stream = io.BytesIO()
    # no content size in the frame: the window is what the header says
    with large.stream_writer(stream, closefd=False) as writer:
        writer.write(b"".join(lines[4:]))
    (tmp_path / "b.jsonl.zst").write_bytes(stream.getvalue())
    assert [s["text"] for s in run(next_to(tmp_path, "out"), [], "text", tmp_path)] == [
        f"document {n}" for n in range(6)
    ]


def test_long_texts_are_cut_and_nothing_is_lost(tmp_path):
    rng = np.random.default_rng(1)
    words = ["".join(rng.choice(list("abcdeé"), rng.integers(1, 12))) for _ in range(3000)]
    joints = rng.choice([" ", "\n", "\n\n"], 3000, p=[0.9, 0.07, 0.03])
    long = "".join(w + j for w, j in zip(words, joints, strict=True))
    texts = ["short", long, "x" * 1000, "  spaces  kept  inside  ", "word " * 100]
    write_texts(tmp_path / "a.jsonl", [{"text": t} for t in texts])
    shards = run(tmp_path, [], "text", tmp_path / "a.jsonl", "tokenize.max_characters=200")
    pieces: dict[int, list[str]] = {}
    for sample in shards:
        number, _, piece = sample["key"].partition("-")
        pieces.setdefault(int(number), []).append(sample["text"])
        assert len(sample["text"]) <= 200 and sample["text"].strip() and int(piece or 0) == len(pieces[int(number)]) - 1
    assert list(pieces) == [0, 1, 2, 3, 4] and pieces[0] == ["short"] and pieces[3] == [texts[3]]
    for number, text in enumerate(texts):
        assert "".join("".join(pieces[number]).split()) == "".join(text.split())
    assert " ".join(" ".join(pieces[1]).split()) == " ".join(long.split())  # no word is cut either
    assert (
        len(pieces[1]) < 1.5 * len(long) / 200 + 1
        and len(pieces[2]) == 5
        and shards.index["recipe"]["max_characters"] == 200
    )


pa = pytest.importorskip("pyarrow")


def write_parquet(path, columns, **options):
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path, **options)


@pytest.mark.parametrize("text_first", [False, True])
@pytest.mark.parametrize("form", ["bytes", "hugging face"])
def test_parquet(tmp_path, vq, text_first, form):
    contents = [content(n) for n in range(8)]
    images = [{"bytes": c, "path": None} for c in contents] if form == "hugging face" else contents
    images[3] = None
    images[5] = {"bytes": None, "path": "x.png"} if form == "hugging face" else b"no image"
    captions = [f"image {n}" if n != 4 else None for n in range(8)]
    columns = {"text": captions, "other": list(range(8)), "image": images}
    write_parquet(tmp_path / "a.parquet", columns if text_first else dict(reversed(columns.items())), row_group_size=3)
    shards = run(tmp_path, vq, "parquet", tmp_path / "a.parquet", "tokenize.max_bad=0.5")
    samples = list(shards)
    assert [(int(s["key"]), s.get("text")) for s in samples] == [(n, captions[n]) for n in (0, 1, 2, 4, 6, 7)]
    assert dropped(shards) == [
        (3, "a.parquet, row 3", "no image"),
        (5, "a.parquet, row 5", "missing image" if form == "hugging face" else "not an image"),
    ]
    check_codes(vq, shards, (0, 1, 2, 4, 6, 7))
    check_every_start("parquet", tmp_path / "a.parquet")


def test_parquet_names_and_damage(tmp_path, vq):
    strings = pa.Array.from_buffers(pa.string(), 6, pa.array([b"a", b"\xff", b"c", b"d", b"e", b"f"]).buffers())
    write_parquet(
        tmp_path / "a.parquet",
        {"pic": [content(n) for n in range(6)], "alt": strings},
        row_group_size=2,
        compression="none",
    )
    names = ("tokenize.image_key=pic", "tokenize.text_key=alt")
    with pytest.raises(
        ValueError,
        match=(
            r"tokenize.image_key has no value: .*a.parquet has none of image, .*; it has pic, alt: name the right "
            r"one with tokenize.image_key"
        ),
    ):
        run(tmp_path, vq, "parquet", tmp_path / "a.parquet")
    with pytest.raises(
        ValueError,
        match=(
            r"tokenize.text_key=caption: .*a.parquet does not have it; it has pic, alt: name the right one with "
            r"tokenize.text_key"
        ),
    ):
        run(tmp_path, vq, "parquet", tmp_path / "a.parquet", names[0], "tokenize.text_key=caption")
    assert not (tmp_path / "set").exists()
    import pyarrow.parquet as pq

    chunk = pq.ParquetFile(tmp_path / "a.parquet").metadata.row_group(1).column(0)
    broken = bytearray((tmp_path / "a.parquet").read_bytes())
    begin = chunk.dictionary_page_offset or chunk.data_page_offset
    broken[begin : begin + 40] = b"\xff" * 40
    (tmp_path / "a.parquet").write_bytes(broken)
    shards = run(tmp_path, vq, "parquet", tmp_path / "a.parquet", *names, "tokenize.max_bad=0.6")
    assert [s.get("text") for s in shards] == ["a", "e", "f"]
    assert [(row, reason) for row, _, reason in dropped(shards)] == [
        (1, "text is not UTF-8"),
        (2, "damaged row group"),
        (3, "damaged row group"),
    ]
    (tmp_path / "b.parquet").write_bytes(bytes(broken[:-50]))
    with pytest.raises(ValueError, match=r"tokenize.input=.*b.parquet: not a parquet file that can be read"):
        run(tmp_path / "b", vq, "parquet", tmp_path / "b.parquet", *names)


def test_parquet_captions_in_lists_images_by_path_and_nested_columns(tmp_path):
    draw(tmp_path / "images", 1)
    images = [{"bytes": content(1), "path": None}, {"bytes": None, "path": "0.png"}, {"bytes": b"", "path": ""}]
    write_parquet(
        tmp_path / "a.parquet",
        {"image": images, "meta": [{"caption": ["a", "b"]}, {"caption": ["c"]}, {"caption": None}]},
    )
    where = (f"tokenize.images={tmp_path / 'images'}", "tokenize.text_key=meta.caption")
    rows, _, _ = rows_of("parquet", tmp_path / "a.parquet", *where)
    two = {"captions": [{"text": "a", "weight": 1.0}, {"text": "b", "weight": 1.0}]}
    assert [(row.problem, row.text, row.info) for row in rows] == [
        (None, "a", two),
        (None, "c", {}),
        ("no image", None, {}),
    ]
    assert all(row.image().shape == (64, 64, 3) for row in rows[:2])
    with pytest.raises(ValueError, match=r"tokenize.text_key=meta.alt: .* does not have it; it has image, meta"):
        rows_of("parquet", tmp_path / "a.parquet", "tokenize.text_key=meta.alt")
    write_parquet(tmp_path / "lists.parquet", {"images": [[content(1)], [content(1)] * 2, []], "text": ["a"] * 3})
    rows, _, _ = rows_of("parquet", tmp_path / "lists.parquet")
    assert [row.problem for row in rows] == [None, "more than one image", "no image"]


def test_text_in_parquet(tmp_path):
    texts = ["a\u2028b", " ", None, "c", "d"]
    write_parquet(tmp_path / "a.parquet", {"text": texts, "id": list(range(5))}, row_group_size=2)
    write_texts(tmp_path / "b.jsonl", [{"text": "e"}])
    shards = run(next_to(tmp_path, "out"), [], "text", tmp_path, "tokenize.max_bad=0.5")
    assert [s["text"] for s in shards] == ["a\u2028b", "c", "d", "e"] and shards.index["dropped"] == {"no text": 2}
    check_every_start("text", tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"tokenize.text_key=raw: .*a.parquet does not have it; it has text, id"):
        rows_of("text", tmp_path / "a.parquet", "tokenize.text_key=raw")


def packed(path, *members):
    """A tar of images and texts: None is a link."""
    with tarfile.open(path, "w") as file:
        for name, data in members:
            member = tarfile.TarInfo(name)
            if data is None:
                member.type, member.linkname = tarfile.LNKTYPE, "0.png"
            member.size = len(data or b"")
            file.addfile(member, io.BytesIO(data or b""))


def test_a_sample_of_a_tar_is_taken_or_counted(tmp_path):
    png = content(0)
    packed(
        tmp_path / "a.tar",
        ("0.png", png),
        ("0.json", b'{"caption": ["a", "b"], "key": "0"}'),
        ("1.avif", png),
        ("1.txt", b"first"),
        ("1.avif", png),  # a second one of this key, next to it
        ("1.txt", b"second"),
        ("2.jfif", png),
        ("2.json", b'{"captions": ["a", "b"]}'),
        ("0.png", png),  # and far from it
        ("3.png", png),
        ("3.jpg", png),
        ("4.png", None),
        ("4.txt", b"of a link"),
        ("5.heic", png),
        (".ipynb_checkpoints/6.png", png),
        ("README", b"of no sample"),
        ("./7.png", png),
        ("._7.png", png),
        ("__MACOSX/7.png", png),
    )
    rows, surveys, omitted = rows_of("webdataset", tmp_path / "a.tar")
    two = {"captions": [{"text": "a", "weight": 1.0}, {"text": "b", "weight": 1.0}]}
    second = "a second sample of this key"
    expected = [("a", two), ("first", {}), second, ("a", two), second, "more than one image"]
    expected += ["a link in the tar, or another thing that is no plain file", "no image", (None, {})]
    assert [row.problem or (row.text, row.info) for row in rows] == expected
    assert (
        omitted == {"hidden file or folder": 3, ".heic file": 1, "file of no sample": 1}
        and surveys["a.tar"].damage is None
    )
    rows, _, _ = rows_of("webdataset", tmp_path / "a.tar", "tokenize.image_key=jpg")
    assert [row.origin for row in rows if not row.problem] == ["a.tar, 3"]
    with pytest.raises(ValueError, match=r"tokenize.text_key=alt: .*a.tar does not have it; it has png, caption, key"):
        rows_of("webdataset", tmp_path / "a.tar", "tokenize.text_key=alt")


def test_archives_one_behind_the_other(tmp_path):
    for name in "ab":
        packed(tmp_path / f"{name}.tar", *((f"{name}{n}.png", content(n)) for n in range(3)))
    (tmp_path / "c.tar").write_bytes((tmp_path / "a.tar").read_bytes() + (tmp_path / "b.tar").read_bytes())
    rows, surveys, _ = rows_of("webdataset", tmp_path / "c.tar")
    assert [row.origin[-2:] for row in rows] == ["a0", "a1", "a2", "b0", "b1", "b2"]
    assert surveys["c.tar"].damage is None


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.tar"])
def test_a_file_that_breaks_off_ends_the_job_before_it_begins(tmp_path, vq, name):
    """However small the share of the rows that is known to be lost."""
    rng = np.random.default_rng(0)
    rows = [{"text": f"{n} {rng.integers(0, 2**60)}", "image": "0.png"} for n in range(400)]
    draw(tmp_path, 1)
    if name == "a.tar":
        packed(tmp_path / name, *((f"{n}.png", content(0)) for n in range(400)))
    elif name == "a.json":
        (tmp_path / name).write_text(json.dumps(rows))
    else:
        write_texts(tmp_path / name, rows)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    source = {"a.tar": "webdataset", "a.json": "pairs"}.get(name, "text")
    setting = vq if source != "text" else []
    with pytest.raises(
        ValueError, match=rf"1 of 1 files cannot be read to their end, .*{name}.*tokenize.allow_broken_files=true"
    ):
        run(tmp_path, setting, source, tmp_path / name)
    assert not (tmp_path / "set").exists()
    if source == "text":
        shards = run(tmp_path, setting, source, tmp_path / name, "tokenize.allow_broken_files=true")
        assert 100 < len(shards) < 300 and shards.index["dropped"] == {DAMAGED: 1}
