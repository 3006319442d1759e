"""`liquid data filter` as a user meets it: a set of drawn images, tokenized by a tiny random VQ, and what is left of
it."""

from __future__ import annotations

import io
import json
import shlex
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_prep.shard_set import writer
from liquid_train.cli import main
from liquid_train.data.shards import ShardSet
from tests.shard_sets import image_set, text_set
from tests.tiny_vq import make_vq

SCENES = 12
WORDS = [
    "harbor",
    "lantern",
    "meadow",
    "copper",
    "violin",
    "thunder",
    "orchard",
    "granite",
    "velvet",
    "compass",
    "saffron",
    "glacier",
    "ember",
]
Samples = dict[str, dict[str, bytes]]


def scene(seed: int, side: int = 96) -> np.ndarray:
    """An image like no other, with as much of fine and of coarse detail as a photograph has."""
    generator, total = np.random.default_rng(seed), np.zeros((side, side, 3))
    for cells in (3, 6, 12, 24):
        noise = Image.fromarray(generator.integers(0, 256, (cells, cells, 3), np.uint8))
        total += np.asarray(noise.resize((side, side), Image.Resampling.BICUBIC)) / cells
    return np.clip(total / total.max() * 255, 0, 255).astype(np.uint8)


def caption(seed: int) -> str:
    chosen = np.random.default_rng(1000 + seed).permutation(WORDS)[:8]
    return f"scene {seed} with " + " and ".join(chosen)


def altered(pixels: np.ndarray) -> np.ndarray:
    """Cropped by 2%, made smaller, and compressed."""
    content, side = io.BytesIO(), len(pixels)
    image = Image.fromarray(pixels).crop((1, 1, side - 1, side - 1)).resize((64, 64), Image.Resampling.BILINEAR)
    image.save(content, "JPEG", quality=60)
    return np.asarray(Image.open(content))


def write_pairs(folder: Path, rows: list[tuple[np.ndarray, str]]) -> Path:
    folder.mkdir(parents=True)
    lines = []
    for n, (pixels, text) in enumerate(rows):
        Image.fromarray(pixels).save(folder / f"{n}.png")
        lines.append(json.dumps({"image_path": f"{n}.png", "text_prompt": text}) + "\n")
    (folder / "pairs.jsonl").write_text("".join(lines))
    return folder / "pairs.jsonl"


@pytest.fixture(scope="module")
def vq(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return make_vq(tmp_path_factory.mktemp("vq") / "a")


def tokenize(pairs: Path, output: Path, vq: list[str], *more: str) -> Path:
    arguments = [
        "tokenize.source=pairs",
        f"tokenize.input={pairs}",
        f"tokenize.output={output}",
        "tokenize.crop=center",
    ]
    arguments += ["tokenize.size=64", "tokenize.workers=0", "tokenize.progress=false", "tokenize.shard_size=8"]
    assert main(["tokenize", *arguments, *vq, *more]) == 0
    return output


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory, vq: list[str]) -> Path:
    """Rows 0 to 11: scenes. 12 to 14: altered copies of 2, 5 and 12 (a chain) with captions of their own. 15: scene 0
    again, byte for byte."""
    rows = [(scene(n), caption(n)) for n in range(SCENES)]
    rows += [(altered(rows[2][0]), caption(20)), (altered(rows[5][0]), caption(21))]
    rows += [(altered(scene(2)), caption(22)), (scene(0), caption(0))]
    folder = tmp_path_factory.mktemp("web")
    return tokenize(write_pairs(folder / "images", rows), folder / "set", vq)


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory, vq: list[str]) -> Path:
    """Altered scenes 3 and 7, and two that the set lacks; made with another crop. The caption of scene 4 on one."""
    rows = [(altered(scene(3)), "one"), (scene(50), "two"), (altered(scene(7)), "three"), (scene(51), caption(4))]
    folder = tmp_path_factory.mktemp("benchmark")
    return tokenize(
        write_pairs(folder / "images", rows), folder / "set", vq, "tokenize.crop=none", "tokenize.size=null"
    )


def files(path: Path) -> Samples:
    """{key: {extension: content}} of all tars of a set, in order."""
    found: Samples = {}
    for tar in sorted(path.glob("*.tar")):
        with tarfile.open(tar) as members:
            for member in members:
                key, _, extension = member.name.partition(".")
                content = members.extractfile(member)
                assert content is not None
                found.setdefault(key, {})[extension] = content.read()
    return found


def numbers(path: Path) -> list[int]:
    return [int(key) for key in files(path)]


def index_of(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((path / "index.json").read_text())
    return value


def test_where_copies_bytes(web: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["data", "filter", str(web), "--where", "number >= 3 and number != 9", "--output", f"{tmp_path}/a"]) == 0
    )
    assert "12 of 16 samples" in capsys.readouterr().out
    before, after = files(web), files(tmp_path / "a")
    assert after == {key: before[key] for key in before if int(key) >= 3 and int(key) != 9}
    index = index_of(tmp_path / "a")
    assert [shard["nsamples"] for shard in index["shardlist"]] == [8, 4]  # full tars, not what is left of each
    assert index["omitted"] == {"where is false": 4}
    assert index["recipe"]["filter"][0]["where"] == "number >= 3 and number != 9"
    assert index["vq_fingerprint"] == index_of(web)["vq_fingerprint"]
    assert [sample["key"] for sample in ShardSet(tmp_path / "a")] == list(after)
    assert main(["data", "verify", f"{tmp_path}/a"]) == 0
    assert main(["data", "describe", f"{tmp_path}/a"]) == 0
    capsys.readouterr()
    assert main(["data", "filter", f"{tmp_path}/a", "--where", "key > '000000010'", "--output", f"{tmp_path}/b"]) == 0
    assert [step.get("where") for step in index_of(tmp_path / "b")["recipe"]["filter"]][1] == "key > '000000010'"


def test_near_duplicates_keep_the_first(web: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listing = tmp_path / "gone.jsonl"
    arguments = ["data", "filter", str(web), "--near-duplicates", "--output", f"{tmp_path}/a", "--list", str(listing)]
    assert main(arguments) == 0
    assert "left out: near-duplicate (image): 4" in capsys.readouterr().out
    assert numbers(tmp_path / "a") == list(range(SCENES))
    gone = [json.loads(line) for line in listing.read_text().splitlines()]
    assert [(line["number"], line["like"]) for line in gone] == [(12, 2), (13, 5), (14, 2), (15, 0)]
    assert main(["data", "filter", str(web), "--near-duplicates", "--match", "text"]) == 0
    assert "15 of 16 samples stay; nothing was written" in capsys.readouterr().out
    assert main(["data", "filter", str(web), "--near-duplicates", "--match", "both"]) == 0
    assert "near-duplicate (image and text): 1" in capsys.readouterr().out


def test_decontamination(web: Path, benchmark: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "filter", str(web), "--exclude", str(benchmark), "--output", f"{tmp_path}/a"]) == 0
    out = capsys.readouterr().out
    assert "2 of its 4 samples found, like 2 of these" in out
    assert numbers(tmp_path / "a") == [n for n in range(16) if n not in (3, 7)]
    assert main(["data", "filter", str(web), "--exclude", str(benchmark), "--match", "either"]) == 0
    out = capsys.readouterr().out
    assert "3 of its 4 samples found, like 3 of these" in out
    assert "like a sample of pairs (image): 2, like a sample of pairs (text): 1" in out


def test_a_benchmark_of_texts_alone_is_looked_for_in_the_captions(
    web: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --match auto, where the benchmark's samples have no images, and of another number than these."""
    lines = "".join(json.dumps({"text": text}) + "\n" for text in (caption(4), "words of another kind " * 9))
    (tmp_path / "questions.jsonl").write_text(lines)
    texts = ["tokenize.source=text", f"tokenize.input={tmp_path / 'questions.jsonl'}", "tokenize.progress=false"]
    assert main(["tokenize", *texts, f"tokenize.output={tmp_path / 'texts'}"]) == 0
    capsys.readouterr()
    assert main(["data", "filter", str(web), "--exclude", str(tmp_path / "texts"), "--output", f"{tmp_path}/a"]) == 0
    assert "1 of its 2 samples found, like 1 of these" in capsys.readouterr().out
    assert numbers(tmp_path / "a") == [n for n in range(16) if n != 4]


def test_commands_of_the_docs(
    web: Path, benchmark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    with pytest.raises(SystemExit):
        main(["data", "filter", "--help"])
    commands = {
        line.strip()
        for text in (page, capsys.readouterr().out)
        for line in text.split("\n")
        if line.strip().startswith("liquid data filter data/")
    }
    assert len(commands) >= 4
    (tmp_path / "data").mkdir()
    (tmp_path / "data/web").symlink_to(web)
    (tmp_path / "data/benchmark").symlink_to(benchmark)
    monkeypatch.chdir(tmp_path)
    for command in commands:
        wanted = command.replace("similarity >= 0.3", "width < 500").replace("256 <= width", "32 <= width")
        assert main(shlex.split(wanted.partition("liquid ")[2])) == 0, command
        shutil.rmtree("data/web-good", ignore_errors=True)


def test_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def documents(name: str, texts: list[str]) -> Path:
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        arguments = ["tokenize.source=text", f"tokenize.input={path}", f"tokenize.output={tmp_path / name}"]
        assert main(["tokenize", *arguments, "tokenize.progress=false"]) == 0
        return tmp_path / name

    long = [" ".join(np.random.default_rng(n).permutation(WORDS * 9)) for n in range(6)]
    changed = [text[:300] + " a few other words " + text[300:] for text in long]
    train = documents("train", [*long[:4], changed[1], "!!!", long[2].upper().replace(" ", "\n"), "..."])
    held = documents("held", [changed[3], long[5]])
    capsys.readouterr()
    arguments = ["data", "filter", str(train), "--near-duplicates", "--exclude", str(held)]
    assert main([*arguments, "--output", f"{tmp_path}/a"]) == 0
    out = capsys.readouterr().out
    assert numbers(tmp_path / "a") == [0, 1, 2, 5, 7]  # texts without a word are like nothing
    assert "1 of its 2 samples found, like 1 of these" in out
    assert "without a hash, so compared with nothing: text: 2" in out
    assert main(["data", "verify", f"{tmp_path}/train", "--input", f"{tmp_path}/train.jsonl"]) == 0


def test_goes_on_after_a_kill(web: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["data", "filter", str(web), "--where", "number != 2", "--shard-size", "4"]
    assert main([*arguments, "--output", f"{tmp_path}/whole"]) == 0
    written: list[str] = []
    close = writer.ShardWriter.close

    def killed(self: writer.ShardWriter) -> dict[str, Any]:
        if len(written) == 2 and not (tmp_path / "restarted").exists():
            raise KeyboardInterrupt
        written.append(self.final.name)
        return close(self)

    monkeypatch.setattr(writer.ShardWriter, "close", killed)
    assert main([*arguments, "--output", f"{tmp_path}/a"]) not in (0, 2)
    assert not (tmp_path / "a/index.json").exists()
    (tmp_path / "restarted").touch()
    assert main([*arguments, "--output", f"{tmp_path}/a"]) == 0
    assert written == [f"shard-0000{n}.tar" for n in range(4)]
    assert index_of(tmp_path / "a") == index_of(tmp_path / "whole")
    assert main([*arguments, "--output", f"{tmp_path}/a"]) == 0  # complete already
    assert len(written) == 4


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(["data", "filter", *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    return error


def test_refusals(web: Path, benchmark: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(web.iterdir())
    assert "nothing to filter by" in refused([str(web)], capsys)
    for output in (web, web / "inside", web.parent, benchmark):
        message = refused([str(web), "--exclude", str(benchmark), "--output", str(output)], capsys)
        assert "overlaps with" in message
    (tmp_path / "link").symlink_to(web)
    message = refused([str(web), "--where", "number > 1", "--output", str(tmp_path / "link")], capsys)
    assert "overlaps with" in message
    assert "of which nothing would be left" in refused([str(web), "--exclude", str(tmp_path / "link")], capsys)
    assert "no sample has the field scores" in refused([str(web), "--where", "scores > 0.5"], capsys)
    assert "cannot be understood" in refused([str(web), "--where", "width ? 3"], capsys)
    message = refused([str(web), "--where", "width > 9000", "--output", f"{tmp_path}/a"], capsys)
    assert "no sample is left of 16 (where is false: 16)" in message
    assert not (tmp_path / "a").exists()
    assert "--image-distance 40" in refused([str(web), "--near-duplicates", "--image-distance", "40"], capsys)
    old = tmp_path / "old"
    old.mkdir()
    (old / "shard-00000.tar").write_bytes(b"the user's own")
    message = refused([str(web), "--where", "number > 1", "--output", str(old)], capsys)
    assert "--output" in message and (old / "shard-00000.tar").read_bytes() == b"the user's own"
    assert sorted(web.iterdir()) == before


def test_sets_without_hashes(web: Path, tmp_path: Path, vq: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    images, texts = image_set(tmp_path / "images", 10), text_set(tmp_path / "texts", 10)
    for arguments in ([str(images), "--near-duplicates"], [str(web), "--exclude", str(texts)]):
        message = refused(arguments, capsys)
        assert "no hashes" in message and "tokenize.hashes=true" in message
    pairs = write_pairs(tmp_path / "few", [(scene(0), "a"), (scene(1), "b")])
    plain = tokenize(pairs, tmp_path / "plain", vq, "tokenize.hashes=false")
    assert "image_hash" not in next(iter(ShardSet(plain)))["info"]
    assert "no hashes" in refused([str(plain), "--near-duplicates"], capsys)
    tokenize(pairs, plain, vq)  # one of before there were hashes is complete as it is
    assert "complete already" in capsys.readouterr().out
    tokenize(pairs, plain, vq, "tokenize.overwrite=true")
    assert main(["data", "filter", str(plain), "--near-duplicates"]) == 0
    # a set of other programs, whose index names no VQ, can be filtered by its fields
    (images / "index.json").unlink()
    assert main(["data", "index", str(images)]) == 0
    assert main(["data", "filter", str(images), "--where", "number < 5", "--output", f"{tmp_path}/five"]) == 0
    assert index_of(tmp_path / "five")["max_code"] == index_of(images)["max_code"]
    assert len(ShardSet(tmp_path / "five", codebook_size=1024)) == 5


def test_damaged_samples_are_counted(web: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in web.iterdir():
        content = file.read_bytes()
        if file.name == "shard-00001.tar":
            content = content.replace(b'"image_hash"', b'"image_hash ', 1)
        (damaged / file.name).write_bytes(content)
    arguments = ["data", "filter", str(damaged), "--where", "number >= 0"]
    assert main([*arguments, "--max-bad", "0.2", "--output", f"{tmp_path}/a"]) == 0
    assert "left out: damaged: json does not parse: 1" in capsys.readouterr().out
    assert len(ShardSet(tmp_path / "a")) == 15
    assert main(["data", "verify", f"{tmp_path}/a"]) == 0
    assert "1 of 16 samples are damaged" in refused([*arguments[2:], "--max-bad", "0"], capsys)
