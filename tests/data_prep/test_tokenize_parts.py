"""One shard set made by many processes, in any order, killed and started again: the same bytes as by one
undisturbed."""

import json
import random
import signal
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data_prep import tokenize
from data_prep.encode.crops import Crop
from data_prep.encode.encoder import BatchEncoder, Encoded, EncoderSettings, RowTask, encode_tasks, prepare
from data_prep.shard_set import folder as set_folder
from data_prep.shard_set.folder import SetFolder
from data_prep.shard_set.writer import PARTIAL
from liquid_train.config.compose import load
from liquid_train.data.shards import ShardSet
from liquid_train.image_tokenizer.preprocess import read_rgb
from liquid_train.image_tokenizer.settings import VQSettings
from tests.data_prep.test_tokenize import content, make_vq
from tests.image_tokenizer.test_preprocess import png
from tests.source_files import config, jsonl

ROOT = Path(__file__).resolve().parents[2]
ROWS, FILES = 150, 50  # every file three times
SIZES = [(32, 32), (40, 24), (24, 40), (48, 32), (33, 31), (64, 48)]


@pytest.fixture(scope="module")
def vq(tmp_path_factory):
    return make_vq(tmp_path_factory.mktemp("vq") / "a")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A list of ROWS images of several sizes; a cut PNG, a page, an empty file and a bomb are among them, and one
    that is too long."""
    folder = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(0)
    for number in range(FILES):
        width, height = SIZES[number % len(SIZES)]
        small = rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
        Image.fromarray(small).resize((width, height)).save(folder / f"{number}.png")
    Image.new("RGB", (100, 20)).save(folder / "long.png")
    (folder / "cut.png").write_bytes((folder / "0.png").read_bytes()[:70])
    (folder / "page.jpg").write_text("<html>404</html>")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "bomb.png").write_bytes(png(50_000, 50_000))
    rows = [{"image_path": f"{number % FILES}.png", "text": f"image {number}"} for number in range(ROWS)]
    for row, name in ((9, "cut.png"), (48, "page.jpg"), (49, "empty.jpg"), (77, "long.png"), (120, "bomb.png")):
        rows[row]["image_path"] = name
    (folder / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "list.jsonl"


def overrides(output, pairs, vq, *more):
    return [
        "tokenize.source=pairs",
        f"tokenize.input={pairs}",
        f"tokenize.output={output}",
        "tokenize.progress=false",
        "tokenize.workers=0",
        "tokenize.shard_size=16",
        "tokenize.batch_size=3",
        "tokenize.crop=multiratio",
        "tokenize.size=32",
        "tokenize.sizes=[40x24,32x32,24x40]",
        *vq,
        *more,
    ]


def run(output, pairs, vq, *more):
    tokenize.run(load("tokenize", overrides(output, pairs, vq, *more)))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, pairs, vq):
    """The set as one process makes it."""
    output = tmp_path_factory.mktemp("whole") / "set"
    run(output, pairs, vq)
    return output


def test_the_set_of_one_process(whole):
    shards = ShardSet(whole)
    damaged = {"broken image": 1, "not an image": 2, "too many pixels": 1}
    assert (
        len(shards) == ROWS - 5
        and shards.index["dropped"] == {**damaged, "aspect ratio above 2": 1}
        and len(shards.shards) == 10
    )
    assert {s["codes"].shape for s in shards} == {(4, 4), (3, 5), (5, 3)} and {s["text"] for s in shards} >= {
        "image 0",
        "image 149",
    }
    lines = [json.loads(line) for line in (whole / "dropped.jsonl").read_text().splitlines()]
    assert [(line["row"], line["shard"]) for line in lines] == [
        (n, f"shard-{n // 16:05d}.tar") for n in (9, 48, 49, 77, 120)
    ]
    assert lines[4]["origin"] == "list.jsonl, row 120 (bomb.png)" and lines[4]["reason"] == "too many pixels"
    assert sorted(p.name for p in whole.iterdir()) == [
        "dropped.jsonl",
        "index.json",
        "samples.npy",
        *(f"shard-{n:05d}.tar" for n in range(10)),
    ]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_parts_in_any_order(tmp_path, pairs, vq, whole, order, capsys):
    for number in order:
        assert not (tmp_path / "set" / "index.json").exists()
        run(tmp_path / "set", pairs, vq, f"tokenize.part={number}/3")
    assert content(tmp_path / "set") == content(whole)
    assert (
        f"part {order[0]}/3 is done; {(3, 3, 4)[order[0]]} of 10 shards of the set are there" in capsys.readouterr().out
    )


def test_ranks_of_torchrun(tmp_path, pairs, vq, whole, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        run(tmp_path / "set", pairs, vq)
        assert len(list((tmp_path / "set").glob("*.tar"))) == (5 if rank == "1" else 10)
    assert content(tmp_path / "set") == content(whole)


def test_more_parts_than_shards(tmp_path, pairs, vq, whole):
    for number in random.Random(0).sample(range(13), 13):
        run(tmp_path / "set", pairs, vq, f"tokenize.part={number}/13")
    assert content(tmp_path / "set") == content(whole)


def test_worker_processes(tmp_path, pairs, vq, whole):
    run(tmp_path / "set", pairs, vq, "tokenize.part=0/2", "tokenize.workers=2")
    run(tmp_path / "set", pairs, vq, "tokenize.part=1/2")
    assert content(tmp_path / "set") == content(whole)


def test_a_finished_part_and_a_finished_set_have_nothing_to_do(tmp_path, pairs, vq, whole, capsys):
    for number in (0, 1):
        run(tmp_path / "set", pairs, vq, f"tokenize.part={number}/2")
        times = {p: p.stat().st_mtime_ns for p in (tmp_path / "set").glob("*.tar")}
        capsys.readouterr()
        run(tmp_path / "set", pairs, vq, f"tokenize.part={number}/2")
        assert {p: p.stat().st_mtime_ns for p in (tmp_path / "set").glob("*.tar")} == times
        assert ("5 of 5 shards are there already", "nothing to do")[number] in capsys.readouterr().out
    assert content(tmp_path / "set") == content(whole)


def test_the_number_of_parts_may_change_half_way(tmp_path, pairs, vq, whole):
    for part in ("1/3", "0/2", "3/4", "2/4"):
        run(tmp_path / "set", pairs, vq, f"tokenize.part={part}")
    assert content(tmp_path / "set") == content(whole)


def started(output, pairs, vq, *more):
    command = [
        sys.executable,
        "-c",
        "import sys; from liquid_train.cli import main; sys.exit(main())",
        "tokenize",
        *overrides(output, pairs, vq, *more),
    ]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_parts_at_the_same_time(tmp_path, pairs, vq, whole):
    processes = [started(tmp_path / "set", pairs, vq, f"tokenize.part={number}/3") for number in range(3)]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    assert content(tmp_path / "set") == content(whole)


def test_killed_at_random_moments(tmp_path, pairs, vq, whole):
    """Two parts at a time, killed with SIGKILL somewhere between planning and the end, then started again."""
    rng, killed, output = random.Random(0), 0, tmp_path / "set"
    for longest in (0.05, 0.25, 0.5):
        processes = [started(output, pairs, vq, f"tokenize.part={number}/2") for number in (0, 1)]
        for process in processes:
            while (
                process.poll() is None
                and not (output / ".partial" / "plan.json").exists()
                and not (output / "index.json").exists()
            ):
                time.sleep(0.005)
            time.sleep(rng.uniform(0, longest))
            process.send_signal(signal.SIGKILL)
            killed += process.wait() == -signal.SIGKILL
            process.communicate()
        for tar in output.glob("shard-*.tar"):  # what is there under its name is complete
            assert content(output)[tar.name] == content(whole)[tar.name]
    assert killed
    for number in (1, 0):
        run(output, pairs, vq, f"tokenize.part={number}/2")
    assert content(output) == content(whole)


@pytest.mark.parametrize("moment", range(1, 24, 2))
def test_broken_off_at_every_kind_of_moment(tmp_path, pairs, vq, whole, moment, monkeypatch):
    """A part is broken off before its n-th rename or sync; another, and the rest of it, complete the set."""
    from liquid_train import files

    class BrokenOff(BaseException):
        pass

    calls = Counter()

    def counted(real):
        def call(*arguments):
            calls["all"] += 1
            if calls["all"] == moment:
                raise BrokenOff
            return real(*arguments)

        return call

    with monkeypatch.context() as patched:
        patched.setattr(files.os, "replace", counted(files.os.replace))
        patched.setattr(files.os, "fsync", counted(files.os.fsync))
        with pytest.raises(BrokenOff):
            run(tmp_path / "set", pairs, vq, "tokenize.part=0/2")
    assert not (tmp_path / "set" / "index.json").exists()
    for number in (1, 0):
        run(tmp_path / "set", pairs, vq, f"tokenize.part={number}/2")
    assert content(tmp_path / "set") == content(whole)


def test_a_part_with_other_settings_is_refused(tmp_path, pairs, vq):
    run(tmp_path / "set", pairs, vq, "tokenize.part=0/2")
    before = content(tmp_path / "set")
    other = make_vq(tmp_path / "vq", seed=1)
    for more, message in [
        ([*vq, "tokenize.shard_size=8"], r"holds another set: shard_size: 16 there, 8 asked for"),
        ([*vq, "tokenize.sizes=[32x32]"], r"holds another set: crop.sizes: "),
        ([*vq, "tokenize.precision=bf16"], r"holds another set: precision: fp32 there, bf16 asked for"),
        ([*vq, f"tokenize.images={pairs.parent.parent}"], r"holds another set: source.images: nothing there"),
        (other, r"holds another set: vq.checkpoint: "),
        (
            [*vq, "tokenize.batch_size=4"],
            r"was begun in another way \(batch_size: 3 there, 4 here\), and codes could differ",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            run(tmp_path / "set", pairs, more, "tokenize.part=1/2")
        assert content(tmp_path / "set") == before


def test_auto_is_what_the_first_part_chose(tmp_path, pairs, vq, whole, monkeypatch):
    import data_prep.encode.batch_size

    chosen = iter([3])
    monkeypatch.setattr(data_prep.encode.batch_size, "fastest_batch", lambda *_: next(chosen))  # asked once
    for number in (1, 0):
        run(tmp_path / "set", pairs, vq, f"tokenize.part={number}/2", "tokenize.batch_size=auto")
    assert content(tmp_path / "set") == content(whole)


def test_changed_inputs_are_noticed(tmp_path, pairs, vq):
    (tmp_path / "list.jsonl").write_bytes(pairs.read_bytes())
    images = f"tokenize.images={pairs.parent}"
    run(tmp_path / "set", tmp_path / "list.jsonl", vq, "tokenize.part=0/2", images)
    (tmp_path / "list.jsonl").write_bytes(pairs.read_bytes() + b"\n{}\n")
    with pytest.raises(ValueError, match=r"holds another set: source.inputs.list.jsonl.bytes"):
        run(tmp_path / "set", tmp_path / "list.jsonl", vq, "tokenize.part=1/2", images)


def test_max_bad_holds_for_the_whole_set(tmp_path, pairs, vq, whole):
    """4 of 150 rows are damaged: two in each of the first and the second half; the too long one is not."""
    limit = "tokenize.max_bad=0.02"
    run(tmp_path / "set", pairs, vq, "tokenize.part=1/2", limit)  # one damaged row
    run(tmp_path / "set", pairs, vq, "tokenize.part=0/3", limit)  # one
    with pytest.raises(
        ValueError,
        match=(
            r"tokenize.max_bad=0.02: 4 of 150 rows cannot be used \(broken image: 1, not an image: 2, too many "
            r"pixels: 1\); fix"
        ),
    ):
        run(tmp_path / "set", pairs, vq, "tokenize.part=0/2", limit)  # three, and one next to it
    assert not (tmp_path / "set" / "index.json").exists()
    run(tmp_path / "set", pairs, vq, "tokenize.part=0/2", "tokenize.max_bad=0.03")
    assert content(tmp_path / "set") == content(whole)


def test_one_part_past_max_bad_stops_at_once(tmp_path, pairs, vq):
    with pytest.raises(ValueError, match=r"tokenize.max_bad=0.01: 3 of 150 rows"):
        run(tmp_path / "set", pairs, vq, "tokenize.part=0/2", "tokenize.max_bad=0.01")
    assert len(list((tmp_path / "set").glob("*.tar"))) == 3  # shards before the one with row 48


@pytest.mark.parametrize("part", ["2/2", "-1/2", "1", "a/b", "0/0", "1/2/3", "0.5/2"])
def test_parts_that_do_not_exist_are_refused(tmp_path, pairs, vq, part):
    with pytest.raises(ValueError, match=rf"tokenize.part={part}: must be I/N with I from 0 to N-1, for example 0/4"):
        run(tmp_path / "set", pairs, vq, f"tokenize.part={part}")
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_batches_of_a_device_give_the_codes_of_single_images(pairs, vq, workers, batch_size):
    """The way of a GPU, where a whole shard is collected into batches of equal size, on an encoder that says it is no
    CPU."""
    files = [vq[0].partition("=")[2], vq[1].partition("=")[2]]
    encoder = BatchEncoder(EncoderSettings(VQSettings(*files), "cpu", "fp32", False, batch_size))
    crop = Crop("multiratio", 8, 32, ((40, 24), (32, 32), (24, 40)))
    sizes = Counter()

    def encode(pixels):
        assert len(pixels) <= batch_size
        sizes[pixels.shape[1:3], len(pixels)] += 1
        return encoder.encode(pixels)

    device = SimpleNamespace(
        device=SimpleNamespace(type="elsewhere"), settings=encoder.settings, encode=encode, to_numpy=encoder.to_numpy
    )
    rows = [json.loads(line) for line in pairs.read_text().splitlines()][:60]
    reads = [Read(pairs.parent / row["image_path"]) for row in rows]
    reads[5] = None
    # shards of 32 and of 28 rows
    tasks = [RowTask(reads[start : start + 8], last=start + 8 in (32, 64)) for start in range(0, 60, 8)]
    shards = list(encode_tasks(tasks, device, crop, workers))  # type: ignore[arg-type]
    assert [len(shard) for shard in shards] == [32, 28] and max(n for _, n in sizes) <= batch_size
    for read, result in zip(reads, [result for shard in shards for result in shard], strict=True):
        image = prepare(read, crop)
        if image is None or isinstance(image, str):
            assert result == image
            continue
        assert isinstance(result, Encoded) and result.info == image.info and result.info["multiratio"]
        x = torch.from_numpy(image.pixels.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        assert np.array_equal(result.codes, encoder.model.encode(x)[0].numpy()) and result.codes.dtype == np.uint16
    if batch_size == 3:
        assert (
            sum(count for (_, n), count in sizes.items() if n == 3)
            > sum(count for (_, n), count in sizes.items() if n < 3)
            > 0
        )


class Read:
    """An image to be read in whatever process it is asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self) -> np.ndarray:
        return read_rgb(self.path)


def test_images_of_a_batch_do_not_change_each_other(pairs, vq):
    """The CPU's way: a batch is of one task and one size, in order of the rows."""
    files = [vq[0].partition("=")[2], vq[1].partition("=")[2]]
    crop = Crop("center", 8, 32, (), None)
    reads = [Read(pairs.parent / f"{n}.png") for n in range(12)]
    grids = {}
    for batch_size in (1, 5):
        encoder = BatchEncoder(EncoderSettings(VQSettings(*files), "cpu", "fp32", False, batch_size))
        grids[batch_size] = [
            r.codes
            for shard in encode_tasks([RowTask(reads, True)], encoder, crop, 0)
            for r in shard
            if isinstance(r, Encoded)
        ]
    assert len(grids[1]) == 12 and all(np.array_equal(a, b) for a, b in zip(grids[1], grids[5], strict=True))


def test_a_part_that_is_not_the_last_reads_no_others_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jsonl(tmp_path / "t.jsonl", [{"text": f"text {n}"} for n in range(6)])
    settings = [f"tokenize.output={tmp_path / 'set'}", "tokenize.shard_size=1", "tokenize.progress=false"]
    read, original = set[str](), set_folder.json_object

    def watched(path: Path) -> Any:
        read.add(path.name)
        return original(path)

    tokenize.run(config("text", tmp_path / "t.jsonl", "tokenize.part=0/3", *settings))
    others = {path.name for path in (tmp_path / "set" / PARTIAL).glob("shard-*.json")}
    monkeypatch.setattr(set_folder, "json_object", watched)
    tokenize.run(config("text", tmp_path / "t.jsonl", "tokenize.part=1/3", *settings))
    assert len(others) == 2 and not read & others


def test_records_of_finished_shards_are_held_in_little_memory(tmp_path: Path) -> None:
    """At most 10 KiB each: a hundred million images make a hundred thousand records."""
    count, generator = 20, np.random.default_rng(0)
    (tmp_path / PARTIAL).mkdir()
    folder = SetFolder(tmp_path)
    shares = generator.dirichlet(np.full(8192, 0.5))
    for n in range(count):
        entry = {
            "url": f"shard-{n:05d}.tar",
            "nsamples": 1024,
            "bytes": 5,
            "sha256": "0" * 64,
            "chunks": [],
            "totals": {},
            "dropped": {},
        }
        folder.record({"entry": entry, "left_out": [], "codes": generator.multinomial(2**20, shares).tolist()})
    tracemalloc.start()
    try:
        records = folder.recorded()
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert len(records) == count and held / count <= 10 * 2**10
