"""Which files a source reads: links, hidden ones, suffixes in any case, images of every format; the rest is counted."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.file_source import find_files
from liquid_train.errors import UserError
from liquid_train.image_tokenizer.preprocess import image_suffixes
from tests.source_files import content, draw, image, rows_of, write_texts


def test_linked_folders_are_followed_once_and_hidden_ones_left_out(tmp_path: Path) -> None:
    root, disk = tmp_path / "in", tmp_path / "disk2"
    for path in (root / "a/0.JSONL", disk / "b/1.jsonl", root / "a/.ipynb_checkpoints/0.jsonl", root / "a/._0.jsonl"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_texts(path, [{"text": path.name}])
    (root / "b").symlink_to(disk / "b")
    (root / "again").symlink_to(root / "a")  # read where it lies
    (root / "a" / "up").symlink_to("..")  # a circle
    (root / "c").symlink_to(disk)  # what b leads to lies in it
    (root / "seen").symlink_to(root / "a" / ".ipynb_checkpoints")  # whoever links it wants it
    (root / "notes.md").write_text("x")
    (root / "away").symlink_to(tmp_path / "disk of another machine")
    (root / "loop").symlink_to("loop")
    os.mkfifo(root / "pipe.jsonl")  # reading it would never end
    rows, surveys, omitted = rows_of("text", root)
    assert list(surveys) == ["a/0.JSONL", "b/1.jsonl", "seen/0.jsonl"]
    assert [row.text for row in rows] == ["0.JSONL", "1.jsonl", "0.jsonl"]
    assert omitted == {
        "hidden file or folder": 2,
        "linked once more": 3,
        "link that leads nowhere": 2,
        ".md file": 1,
        "neither file nor folder": 1,
    }


def test_two_stars_follow_links_without_going_round_in_circles(tmp_path: Path) -> None:
    for name in ("a/0.jsonl", "a/b/1.jsonl", "disk/2.jsonl", "a/b/x.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_texts(tmp_path / name, [{"text": name}])
    for n in range(3):  # each circle multiplies what glob finds by 40
        (tmp_path / "a" / f"up{n}").symlink_to("..")
    (tmp_path / "a" / "c").symlink_to(tmp_path / "disk")
    for pattern, expected in (("**/*.jsonl", 3), ("a/**/*.jsonl", 3), ("a/**/b/*.jsonl", 1), ("**/2.jsonl", 1)):
        assert len(rows_of("text", f"{tmp_path}/{pattern}")[0]) == expected, pattern


def test_one_file_under_two_names_is_read_once(tmp_path: Path) -> None:
    write_texts(tmp_path / "a.jsonl", [{"text": "a"}])
    (tmp_path / "b.jsonl").symlink_to("a.jsonl")
    rows, _, omitted = rows_of("text", f"{tmp_path}/*.jsonl")
    assert [row.text for row in rows] == ["a"] and omitted == {"linked once more": 1}


def test_names_that_differ_only_in_bytes_that_are_no_utf8(tmp_path: Path) -> None:
    for name in (b"\xfe.jsonl", b"\xff.jsonl"):
        write_texts(tmp_path / os.fsdecode(name), [{"text": repr(name)}])
    rows, surveys, _ = rows_of("text", tmp_path)
    assert len(rows) == len(surveys) == 2


def test_a_folder_without_a_file_of_the_kind_says_what_it_has(tmp_path: Path) -> None:
    draw(tmp_path, 2)
    with pytest.raises(UserError, match=r"no \.tar file in that folder; it has \.png file: 2"):
        find_files(str(tmp_path), (".tar",), Counter())


def test_images_of_every_format_and_captions_in_any_case(tmp_path: Path) -> None:
    written = {name: image(n) for n, name in enumerate(("a.avif", "c.jp2", "d.bmp", "e.TIFF", "f.png", "g.jpg"))}
    for name, picture in written.items():
        picture.save(tmp_path / name)
    image(9).save(tmp_path / "b.jfif", "JPEG")
    (tmp_path / "h.heic").write_bytes(b"no reader")
    (tmp_path / "i.svg").write_text("<svg/>")
    for name in ("f.TXT", "g.txt", "g.TXT", "lonely.txt", "notes.md"):
        (tmp_path / name).write_text(f"\ufeff{name}")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / ".ipynb_checkpoints" / "f-checkpoint.png").write_bytes(content(1))
    rows, _, omitted = rows_of("folder", tmp_path)
    texts = {row.origin: row.text for row in rows if row.problem is None}
    assert texts == {**dict.fromkeys([*written, "b.jfif"]), "f.png": "f.TXT", "g.jpg": "g.txt"}
    for row in rows[:7]:
        assert row.image is not None and row.image().shape == (64, 64, 3)
    assert [row.problem for row in rows[-2:]] == ["no reader of .heic images", "no reader of .svg images"]
    assert omitted == {"hidden file or folder": 1, "caption without an image": 2, ".md file": 1}


def test_suffixes_are_those_that_pillow_reads(tmp_path: Path) -> None:
    assert {".png", ".jpg", ".jpeg", ".jfif", ".jp2", ".webp", ".tif", ".avif"} <= image_suffixes()
    assert not {".eps", ".pdf", ".mpg", ".h5"} & image_suffixes()
    for suffix in image_suffixes() & Image.registered_extensions().keys():
        if Image.registered_extensions()[suffix] in Image.SAVE and suffix != ".pfm":
            Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / f"a{suffix}")
    rows, _, _ = rows_of("folder", tmp_path)
    assert len(rows) > 20 and all(row.image is not None and row.image().shape == (16, 16, 3) for row in rows)


def test_a_hugging_face_folder_is_sent_to_its_list(tmp_path: Path) -> None:
    draw(tmp_path / "train", 1)
    (tmp_path / "train" / "metadata.csv").write_text("file_name,text\n0.png,a caption\n")
    with pytest.raises(UserError, match=r"captions stand in metadata\.csv.*tokenize\.source=pairs") as error:
        rows_of("folder", tmp_path)
    (row,), _, _ = rows_of("pairs", str(error.value).rpartition("tokenize.input=")[2])
    assert row.text == "a caption" and row.image is not None and row.image().shape == (64, 64, 3)
