"""`liquid tokenize` and what is there already: which source a set was made of, what an output may overlap, what may be
replaced, and what a failed start leaves."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep import file_source, tokenize
from data_prep.encode.patience import Patience
from data_prep.source import ImageFile
from liquid_train.cli import main
from liquid_train.data.shards import ShardSet
from liquid_train.errors import UserError
from tests.data_prep.test_tokenize import content
from tests.source_files import config, draw, jsonl, tar
from tests.source_files import content as image_content
from tests.tiny_vq import make_vq

FIXED = ["tokenize.shard_size=2", "tokenize.batch_size=2", "tokenize.workers=0", "tokenize.progress=false"]


@pytest.fixture(scope="module")
def vq(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return make_vq(tmp_path_factory.mktemp("vq") / "a")


def run(source: str, where: object, output: Path, *more: str) -> None:
    tokenize.run(config(source, where, f"tokenize.output={output}", *FIXED, *more))


def paint(path: Path, color: str) -> None:
    """A file of the same size for every colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 64), color).save(path, "BMP")


def pairs(folder: Path, count: int = 4) -> Path:
    for number in range(count):
        paint(folder / "images" / f"{number}.bmp", "red")
    rows = [{"image_path": f"images/{n}.bmp", "text": f"number {n}"} for n in range(count)]
    jsonl(folder / "pairs.jsonl", rows)
    return folder / "pairs.jsonl"


def tars(folder: Path) -> Path:
    folder.mkdir(parents=True)
    tar(folder / "shard-00000.tar", [("a.png", image_content(0)), ("a.txt", b"a")])
    return folder


@pytest.mark.parametrize(
    ("source", "given", "output", "message"),
    [
        ("webdataset", "data", "data", "tokenize.input=.*data lies inside it"),
        ("webdataset", "data/shard-00000.tar", "data", "tokenize.input=.*shard-00000.tar lies inside it"),
        ("webdataset", "data", "data/deep/set", "lies inside tokenize.input="),
        ("webdataset", "data", ".", "tokenize.input=.*data lies inside it"),
        ("webdataset", "link", "data", "tokenize.input=.*lies inside it"),
        ("webdataset", "data/**/*.tar", "data/set", "what is written there would be input as well"),
        ("webdataset", "*/*.tar", "set", "what is written there would be input as well"),
        ("folder", "images", "images/set", "lies inside tokenize.input="),
        ("folder", "images", "images", "lies inside it"),
        ("pairs", "pairs.jsonl", "images/..", "lies inside it"),
    ],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_output_and_input_do_not_overlap(
    tmp_path: Path, vq: list[str], source: str, given: str, output: str, message: str, overwrite: bool
) -> None:
    pairs(tmp_path)
    (tmp_path / "link").symlink_to(tars(tmp_path / "data"))
    before = content(tmp_path)
    more = ["tokenize.overwrite=true"] if overwrite else []
    with pytest.raises(UserError, match=f"tokenize.output=.*{message}"):
        run(source, tmp_path / given, tmp_path / output, *vq, *more)
    assert content(tmp_path) == before


def test_images_of_a_list_do_not_lie_in_the_output(tmp_path: Path, vq: list[str]) -> None:
    pairs(tmp_path / "data")
    images = f"tokenize.images={tmp_path / 'data'}"
    shutil.move(tmp_path / "data" / "pairs.jsonl", tmp_path / "list.jsonl")
    with pytest.raises(UserError, match="tokenize.images=.*lies inside it"):
        run("pairs", tmp_path / "list.jsonl", tmp_path / "data", images, *vq)
    run("pairs", tmp_path / "list.jsonl", tmp_path / "data" / "set", images, *vq)  # only what is listed is read
    assert len(ShardSet(tmp_path / "data" / "set")) == 4


def test_overwrite_removes_what_was_written_and_nothing_else(tmp_path: Path, vq: list[str]) -> None:
    given, output = pairs(tmp_path, 6), tmp_path / "set"
    run("pairs", given, output, *vq)
    for name in ("notes.txt", "mine-00000.tar", "shard-00001.tar.bak"):
        (output / name).write_text("mine")
    other = ["tokenize.overwrite=true", "tokenize.shard_size=3"]
    (output / "shard-00007.tar").write_text("mine too")
    before = content(output)
    with pytest.raises(UserError, match=r"\(shard-00007.tar\): not written by this program"):
        run("pairs", given, output, *vq, *other)
    assert content(output) == before
    (output / "shard-00007.tar").unlink()
    run("pairs", given, output, *vq, *other)
    assert len(list(output.glob("shard-*.tar"))) == 2 and (output / "notes.txt").read_text() == "mine"
    assert (output / "mine-00000.tar").exists() and (output / "shard-00001.tar.bak").exists()


@pytest.mark.parametrize("name", ["shard-00000.tar", "index.json", "dropped.jsonl"])
def test_files_of_others_are_never_replaced(tmp_path: Path, vq: list[str], name: str) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / name).write_text('{"shardlist": []}')
    for more in ([], ["tokenize.overwrite=true"]):
        with pytest.raises(UserError, match=f"its shards have no recipe.*{name}.*not written by this program"):
            run("pairs", pairs(tmp_path), tmp_path / "set", *vq, *more)
    assert (tmp_path / "set" / name).read_text() == '{"shardlist": []}' and len(list((tmp_path / "set").iterdir())) == 1


def test_one_listed_image_of_other_content(tmp_path: Path, vq: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    given, output = pairs(tmp_path), tmp_path / "set"
    run("pairs", given, output, *vq)
    before = content(output)
    paint(tmp_path / "images" / "3.bmp", "blue")
    with pytest.raises(UserError, match=r"of 1 of its shards the images have changed .*, in shard-00001.tar"):
        run("pairs", given, output, *vq)
    assert content(output) == before
    inode = (output / "shard-00000.tar").stat().st_ino
    run("pairs", given, output, *vq, "tokenize.overwrite=true")
    run("pairs", given, tmp_path / "fresh", *vq)
    assert content(output) == content(tmp_path / "fresh") != before
    assert (output / "shard-00000.tar").stat().st_ino == inode  # only what has changed is encoded again
    shutil.rmtree(tmp_path / "images")
    capsys.readouterr()
    run("pairs", given, output, *vq)  # images may go once they are tokenized
    assert "nothing to do" in capsys.readouterr().out


def test_half_a_set_and_other_images(tmp_path: Path, vq: list[str]) -> None:
    given, output = pairs(tmp_path), tmp_path / "set"
    run("pairs", given, output, *vq, "tokenize.part=0/2")
    paint(tmp_path / "images" / "0.bmp", "blue")
    run("pairs", given, output, *vq, "tokenize.part=1/2")  # completes the set: its own images are as they were
    with pytest.raises(UserError, match="the images have changed"):
        run("pairs", given, output, *vq, "tokenize.part=0/2")


def test_a_folder_whose_files_were_replaced(tmp_path: Path, vq: list[str]) -> None:
    for number in range(3):
        paint(tmp_path / "images" / f"{number}.bmp", "red")
        (tmp_path / "images" / f"{number}.txt").write_text("a red cat")
    run("folder", tmp_path / "images", tmp_path / "set", *vq)
    (tmp_path / "images" / "1.txt").write_text("a blu cat")
    with pytest.raises(UserError, match=r"holds another set: source.modified: \w{12}... there, \w{12}... asked for"):
        run("folder", tmp_path / "images", tmp_path / "set", *vq)


def test_a_long_file_changed_far_from_its_beginning(
    tmp_path: Path, vq: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_source, "HASHED_BYTES", 64)
    monkeypatch.setattr(file_source, "HASHED_OF_EACH", 64)
    lines = [{"text": f"text number {n}"} for n in range(8)]
    jsonl(tmp_path / "t.jsonl", lines)
    run("text", tmp_path / "t.jsonl", tmp_path / "set")
    time.sleep(0.02)
    jsonl(tmp_path / "t.jsonl", [*lines[:-1], {"text": "text number X"}])
    with pytest.raises(UserError, match=r"source.inputs.t.jsonl.modified: \d+ there, \d+ asked for"):
        run("text", tmp_path / "t.jsonl", tmp_path / "set")


def test_a_set_of_before_times_were_recorded(tmp_path: Path, vq: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        paint(tmp_path / "images" / f"{number}.bmp", "red")
    run("folder", tmp_path / "images", tmp_path / "set", *vq)
    index = json.loads((tmp_path / "set" / "index.json").read_text())
    del index["recipe"]["source"]["modified"]
    for entry in index["shardlist"]:
        del entry["image_files"]
    (tmp_path / "set" / "index.json").write_text(json.dumps(index))
    os.utime(tmp_path / "images" / "0.bmp", (0, 0))
    run("folder", tmp_path / "images", tmp_path / "set", *vq)
    assert "nothing to do" in capsys.readouterr().out


def test_a_set_and_its_source_may_be_moved(tmp_path: Path, vq: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "here").mkdir()
    run("pairs", pairs(tmp_path / "here"), tmp_path / "here" / "set", *vq, "tokenize.part=0/2")
    (tmp_path / "here").rename(tmp_path / "there")
    run("pairs", tmp_path / "there" / "pairs.jsonl", tmp_path / "there" / "set", *vq)
    run("pairs", tmp_path / "there" / "pairs.jsonl", tmp_path / "there" / "set", *vq)
    assert "1 of 2 shards are there already" in (out := capsys.readouterr().out) and "nothing to do" in out


def test_a_failed_start_blocks_nothing(tmp_path: Path, vq: list[str]) -> None:
    """No image fits, which ends the job with shards that hold no sample; other settings need no overwrite."""
    draw(tmp_path / "images", 0)
    for number in range(6):
        Image.new("RGB", (60, 60), "red").save(tmp_path / "images" / f"{number}.png")
    for more in (["tokenize.max_bad=0.5"], ["tokenize.max_bad=1"]):
        with pytest.raises(UserError, match="sides not multiples of 8: "):
            run("folder", tmp_path / "images", tmp_path / "set", *vq, *more)
    run("folder", tmp_path / "images", tmp_path / "set", *vq, "tokenize.crop=center", "tokenize.shard_size=4")
    run("folder", tmp_path / "images", tmp_path / "fresh", *vq, "tokenize.crop=center", "tokenize.shard_size=4")
    assert content(tmp_path / "set") == content(tmp_path / "fresh")


def test_rows_dropped_for_a_while_are_there_once_the_source_is_mended(tmp_path: Path, vq: list[str]) -> None:
    """Two parts of two shards of two rows; the second meets no image, stops past max_bad, and is run again."""
    given, output = pairs(tmp_path, 8), tmp_path / "set"
    run("pairs", given, output, *vq, "tokenize.max_bad=0.3", "tokenize.part=0/2")
    (tmp_path / "images").rename(tmp_path / "away")
    with pytest.raises(UserError, match="max_bad=0.3: 4 of 8 rows"):
        run("pairs", given, output, *vq, "tokenize.max_bad=0.3", "tokenize.part=1/2")
    (tmp_path / "away").rename(tmp_path / "images")
    run("pairs", given, output, *vq, "tokenize.max_bad=0.3", "tokenize.part=1/2")
    assert (output / "index.json").exists() and not (output / "dropped.jsonl").exists()


def test_dropped_rows_of_a_complete_set_are_tried_again(
    tmp_path: Path, vq: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    given, output = pairs(tmp_path, 8), tmp_path / "set"
    (tmp_path / "images" / "2.bmp").unlink()
    (tmp_path / "images" / "7.bmp").write_bytes(b"half an image")
    run("pairs", given, output, *vq, "tokenize.max_bad=0.5")
    run("pairs", given, output, *vq)
    assert "missing image: 1; tokenize.retry_dropped=true tries them again" in capsys.readouterr().out
    run("pairs", given, output, *vq, "tokenize.retry_dropped=true")
    assert "none of its 2 dropped rows can be used now" in capsys.readouterr().out
    times = {path: path.stat().st_mtime_ns for path in output.glob("*.tar")}
    paint(tmp_path / "images" / "2.bmp", "red")
    paint(tmp_path / "images" / "7.bmp", "red")
    run("pairs", given, output, *vq, "tokenize.retry_dropped=true")
    assert "2 dropped rows can be used now: 2 shards are made again" in capsys.readouterr().out
    run("pairs", given, tmp_path / "fresh", *vq)
    assert content(output) == content(tmp_path / "fresh")
    kept = [path.name for path, made in times.items() if path.stat().st_mtime_ns == made]
    assert sorted(kept) == ["shard-00000.tar", "shard-00002.tar"]


def test_a_folder_that_goes_away_is_waited_for(tmp_path: Path) -> None:
    paint(tmp_path / "images" / "0.bmp", "red")
    patience, image = Patience(5), ImageFile(tmp_path / "images" / "0.bmp")
    patience.read(image)
    with pytest.raises(FileNotFoundError):  # the folder is there: the list's mistake
        patience.read(ImageFile(tmp_path / "images" / "1.bmp"))
    (tmp_path / "images").rename(tmp_path / "away")
    back = threading.Timer(0.3, (tmp_path / "away").rename, [tmp_path / "images"])
    back.start()
    assert np.array_equal(patience.read(image)[0, 0], (255, 0, 0))
    back.join()
    (tmp_path / "images").rename(tmp_path / "away")
    (tmp_path / "images").mkdir()  # as a mount point is
    patience.seconds = 0.2
    with pytest.raises(UserError, match="images: was there, and is not any more, for 0.2 seconds; finished shards are"):
        patience.read(image)
    elsewhere = ImageFile(tmp_path / "images" / "never read" / "0.bmp")
    with pytest.raises(UserError, match="images: was there, and is not any more"):
        patience.read(elsewhere)
    with pytest.raises(FileNotFoundError):
        Patience(0.2).read(image)  # was never there


def test_shards_of_two_plans_make_no_set(tmp_path: Path) -> None:
    """As two jobs on two machines would leave them in an object store, which has no locks."""
    jsonl(tmp_path / "t.jsonl", [{"text": f"text {n}"} for n in range(6)])
    run("text", tmp_path / "t.jsonl", tmp_path / "set", "tokenize.part=0/3")
    record = tmp_path / "set" / ".partial" / "shard-00000.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "plan": "another"}))
    run("text", tmp_path / "t.jsonl", tmp_path / "set", "tokenize.part=1/3")
    with pytest.raises(UserError, match="another process wrote to it by another plan"):
        run("text", tmp_path / "t.jsonl", tmp_path / "set", "tokenize.part=2/3")
    run("text", tmp_path / "t.jsonl", tmp_path / "set")
    run("text", tmp_path / "t.jsonl", tmp_path / "whole")
    assert content(tmp_path / "set") == content(tmp_path / "whole")


def test_a_folder_that_stays_away_ends_the_job_in_one_line(
    tmp_path: Path, vq: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from data_prep.encode import patience

    given, output = pairs(tmp_path, 8), tmp_path / "set"
    read = patience.ImageFile.__call__

    def read_until(image: ImageFile) -> np.ndarray:
        assert isinstance(image.path, Path)
        if image.path.name == "4.bmp" and image.path.exists():
            image.path.parent.rename(tmp_path / "away")
        return read(image)

    monkeypatch.setattr(patience.ImageFile, "__call__", read_until)
    settings = [f"tokenize.input={given}", f"tokenize.output={output}", *FIXED, "tokenize.wait=0.1", *vq]
    assert main(["tokenize", "tokenize.source=pairs", *settings]) == 2
    said = capsys.readouterr()
    assert "was there, and is not any more" in said.err and "Traceback" not in said.err
    (tmp_path / "away").rename(tmp_path / "images")
    monkeypatch.undo()
    run("pairs", given, output, *vq)
    assert len(ShardSet(output)) == 8 and not (output / "dropped.jsonl").exists()
