"""`liquid data merge|verify|describe|inspect` as a user meets them: small sets of a tiny random VQ, whole and
damaged."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_prep.shard_set.writer import to_npy
from liquid_train.cli import main
from liquid_train.data.shards import ShardSet
from liquid_train.files import sha256_of
from tests.shard_sets import text_set
from tests.tiny_vq import CODEBOOK, make_vq

ROWS = 26
SHARDS = 4  # of 8 rows, the last one of 2
CAPTIONS = ("a red bar", "Кошка на окне", "猫 🐱 " + "w" * 300, "ein Löwe,\ngroß " + "und müde " * 60)


@pytest.fixture(scope="module")
def vq(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return make_vq(tmp_path_factory.mktemp("vq") / "a")


@pytest.fixture(scope="module")
def flags(vq: list[str]) -> list[str]:
    return ["--vq-config", vq[0].partition("=")[2], "--vq-checkpoint", vq[1].partition("=")[2]]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of two shapes; row 3 cannot be read, row 12 is too long."""
    folder = tmp_path_factory.mktemp("pairs")
    rows = []
    for n in range(ROWS):
        width, height = [(64, 64), (96, 64)][n % 2] if n != 12 else (200, 64)
        pixels = np.full((height, width, 3), 230, np.uint8)
        pixels[4 + n : 30 + n, 8 : 30 + n] = (200, 9 * n, 40)
        Image.fromarray(pixels).save(folder / f"{n}.png")
        rows.append({"image_path": f"{n}.png", "text_prompt": CAPTIONS[n % 4]})
    (folder / "3.png").write_bytes(b"no image")
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "pairs.jsonl"


Tokenize = Callable[..., Path]


@pytest.fixture(scope="module")
def tokenize(pairs: Path, vq: list[str]) -> Tokenize:
    def make(output: Path, *overrides: str, status: int = 0) -> Path:
        base = [
            "tokenize.source=pairs",
            f"tokenize.input={pairs}",
            "tokenize.progress=false",
            "tokenize.workers=0",
            "tokenize.shard_size=8",
            "tokenize.batch_size=3",
            "tokenize.crop=multiratio",
            "tokenize.sizes=[64x64,72x56]",
        ]
        assert main(["tokenize", *base, f"tokenize.output={output}", *vq, *overrides]) == status
        return output

    return make


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tokenize: Tokenize) -> Path:
    return tokenize(tmp_path_factory.mktemp("whole") / "set")


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    """A set to be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "copy"))


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory, tokenize: Tokenize) -> list[Path]:
    """Four parts, each in a folder of its own, as on four node-local disks."""
    root = tmp_path_factory.mktemp("parts")
    return [tokenize(root / f"part-{i}", f"tokenize.part={i}/4") for i in range(4)]


def content(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): sha256_of(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def data(*args: object) -> int:
    return main(["data", *map(str, args)])


def refused(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    """The one line that a user's mistake gets."""
    capsys.readouterr()
    assert data(*args) == 2
    message = capsys.readouterr().err.strip()
    assert len(message.splitlines()) == 1 and message.startswith("liquid data: ")
    return message


def listed(capsys: pytest.CaptureFixture[str], *args: object) -> list[str]:
    """What is wrong with a set, without the count in the last line."""
    capsys.readouterr()
    assert data("verify", *args) == 1
    return capsys.readouterr().out.splitlines()[:-1]


def edit_index(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    index = json.loads((folder / "index.json").read_text())
    change(index)
    (folder / "index.json").write_text(json.dumps(index))


def rewrite(folder: Path, number: int, change: Callable[[str, bytes], bytes]) -> None:
    """Change files of a shard that keep their sizes, and record the new content as if it had been written so."""
    tar = folder / f"shard-{number:05d}.tar"
    data = bytearray(tar.read_bytes())
    with tarfile.open(tar) as opened:
        for member in opened:
            file = opened.extractfile(member)
            assert file is not None
            old = file.read()
            new = change(member.name, old)
            assert len(new) == len(old)
            data[member.offset_data : member.offset_data + member.size] = new
    tar.write_bytes(data)
    edit_index(folder, lambda index: index["shardlist"][number].update(sha256=sha256_of(tar)))


def changed_codes(key: str, change: Callable[[np.ndarray], None]) -> Callable[[str, bytes], bytes]:
    def apply(name: str, old: bytes) -> bytes:
        if name != f"{key}.codes.npy":
            return old
        codes = np.load(io.BytesIO(old))
        change(codes)
        return to_npy(codes)

    return apply


# --- merge


def test_parts_from_their_own_folders_give_the_bytes_of_one_run(
    parts: list[Path], whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = [content(part) for part in parts]
    assert data("merge", tmp_path / "set", *reversed(parts)) == 0
    assert content(tmp_path / "set") == content(whole) and [content(part) for part in parts] == before
    assert "24 samples in 4 shards" in capsys.readouterr().out
    assert data("merge", tmp_path / "set", *parts) == 0
    assert "complete already, 24 samples" in capsys.readouterr().out and content(tmp_path / "set") == content(whole)


def test_shards_are_copied_where_they_cannot_be_linked(
    parts: list[Path], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert data("merge", tmp_path / "linked", *parts) == 0
    assert (tmp_path / "linked" / "shard-00000.tar").samefile(parts[0] / "shard-00000.tar")

    def link(source: Path, target: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", link)
    assert data("merge", tmp_path / "copied", *parts) == 0
    assert not (tmp_path / "copied" / "shard-00000.tar").samefile(parts[0] / "shard-00000.tar") and content(
        tmp_path / "copied"
    ) == content(whole)


def test_a_merge_that_was_killed_goes_on(
    parts: list[Path], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, moves = os.replace, 0

    def killed(staging_directory: Path, final: Path) -> None:
        nonlocal moves
        moves += 1
        if moves == 5:  # 1 plan, 2 and 3 the first shard and its record, 4 the second shard
            raise KeyboardInterrupt
        replace(staging_directory, final)

    monkeypatch.setattr(os, "replace", killed)
    assert data("merge", tmp_path / "set", *parts) == 130
    monkeypatch.undo()
    with pytest.raises(ValueError, match="no index.json"):
        ShardSet(tmp_path / "set")
    assert data("merge", tmp_path / "set", *parts) == 0 and content(tmp_path / "set") == content(whole)


def test_parts_in_the_output_are_completed_in_place(
    tokenize: Tokenize, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from data_prep.shard_set.maker import SetMaker

    for i in (0, 1):
        tokenize(tmp_path / "set", f"tokenize.part={i}/4")
    begun = content(tmp_path / "set")
    assert (
        "2 of 4 shards are in no part: 2-3;" in refused(capsys, "merge", tmp_path / "set")
        and content(tmp_path / "set") == begun
    )
    # the last part is killed before it completes the set
    monkeypatch.setattr(SetMaker, "_complete", lambda self, rate: None)
    for i in (2, 3):
        tokenize(tmp_path / "set", f"tokenize.part={i}/4")
    assert not (tmp_path / "set" / "index.json").exists()
    assert data("merge", tmp_path / "set") == 0 and content(tmp_path / "set") == content(whole)
    assert data("merge", tmp_path / "set") == 0 and "complete already" in capsys.readouterr().out


def test_a_part_that_made_the_whole_set_beside_parts_that_made_nothing(tokenize: Tokenize, tmp_path: Path) -> None:
    parts = [tokenize(tmp_path / f"{i}", f"tokenize.part={i}/2", "tokenize.shard_size=100") for i in range(2)]
    assert data("merge", tmp_path / "set", *parts) == 0
    assert (
        content(tmp_path / "set") == content(tokenize(tmp_path / "one", "tokenize.shard_size=100")) == content(parts[1])
    )


def test_text_parts(tmp_path: Path) -> None:
    rows = [json.dumps({"text": f"document {n}. " + "words and more " * (60 if n == 4 else 3)}) for n in range(20)]
    (tmp_path / "texts.jsonl").write_text("\n".join(rows))
    base = [
        "tokenize",
        "tokenize.source=text",
        f"tokenize.input={tmp_path / 'texts.jsonl'}",
        "tokenize.progress=false",
        "tokenize.shard_size=6",
        "tokenize.max_characters=300",
    ]
    assert main([*base, f"tokenize.output={tmp_path / 'one'}"]) == 0
    for i in range(2):
        assert main([*base, f"tokenize.output={tmp_path / str(i)}", f"tokenize.part={i}/2"]) == 0
    assert data("merge", tmp_path / "set", tmp_path / "0", tmp_path / "1") == 0 and content(
        tmp_path / "set"
    ) == content(tmp_path / "one")
    assert data("verify", tmp_path / "set", "--input", tmp_path / "texts.jsonl") == 0


def test_gaps_overlaps_and_damage_are_refused_and_leave_nothing(
    parts: list[Path], tokenize: Tokenize, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "set"
    assert "2 of 4 shards are in no part: 0, 2;" in refused(capsys, "merge", output, parts[1], parts[3])
    assert f"shards in two folders: 1 in {parts[1]} and in {parts[1]}" in refused(
        capsys, "merge", output, *parts, parts[1]
    )
    half = tokenize(tmp_path / "half", "tokenize.part=0/2")
    assert f"0 in {half} and in {parts[0]}; 1 in {half} and in {parts[1]}" in refused(
        capsys, "merge", output, half, *parts
    )
    damaged = Path(shutil.copytree(parts[2], tmp_path / "damaged"))
    with open(damaged / "shard-00002.tar", "r+b") as file:
        file.seek(1000)
        file.write(b"\x55")
    assert f"{damaged / 'shard-00002.tar'}: missing or not as recorded" in refused(
        capsys, "merge", output, parts[0], parts[1], damaged, parts[3]
    )
    (damaged / "shard-00002.tar").unlink()
    assert f"{damaged / 'shard-00002.tar'}: missing or not as recorded" in refused(
        capsys, "merge", output, parts[0], parts[1], damaged, parts[3]
    )
    assert not output.exists()


def test_parts_of_different_sets_are_refused(
    parts: list[Path], tokenize: Tokenize, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tokenize(tmp_path / "other", "tokenize.part=1/2", "tokenize.batch_size=2", "tokenize.precision=bf16")
    message = refused(capsys, "merge", tmp_path / "set", parts[0], other)
    assert (
        f"{parts[0]} and {other} hold different sets: encoder.batch_size (3, 2), recipe.precision (fp32, bf16);"
        in message
    )
    assert f"{whole} and {other} hold different sets" in refused(capsys, "merge", whole, other)
    (tmp_path / "shard-00000.tar").write_bytes(b"somebody's")
    assert "its shards have no plan" in refused(capsys, "merge", tmp_path, *parts)
    assert f"{tmp_path / 'nowhere'}: no such folder" in refused(capsys, "merge", tmp_path / "set", tmp_path / "nowhere")
    assert "no part of a set there" in refused(capsys, "merge", tmp_path / "set")
    assert "a file; give the folder" in refused(capsys, "merge", tmp_path / "shard-00000.tar", *parts)
    assert not (tmp_path / "set").exists()


def test_max_bad_is_that_of_the_parts_or_the_flag(
    tokenize: Tokenize, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = [tokenize(tmp_path / f"{i}", f"tokenize.part={i}/2", f"tokenize.max_bad={0.2 + i / 10}") for i in range(2)]
    assert "--max-bad=0.01: 1 of 26 rows cannot be used (not an image: 1)" in refused(
        capsys, "merge", tmp_path / "set", *parts, "--max-bad", "0.01"
    )
    assert not (tmp_path / "set").exists()
    assert data("merge", tmp_path / "set", *parts) == 0
    assert "max_bad" not in json.loads((tmp_path / "set" / "index.json").read_text())


# --- verify


def test_a_sound_set_passes_in_one_line(
    whole: Path, pairs: Path, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(whole)
    capsys.readouterr()
    assert data("verify", whole, "--input", pairs, *flags, "--sheet", tmp_path / "sheets" / "a.png") == 0
    out = capsys.readouterr().out.splitlines()
    assert (
        len(out) == 1
        and "24 samples in 4 shards" in out[0]
        and "26 rows tokenized again, 1,524 of 1,524 codes equal (100.00%)" in out[0]
    )
    assert content(whole) == before
    with Image.open(tmp_path / "sheets" / "a.png") as sheet:
        pixels = np.asarray(sheet)
    assert (pixels[..., 0].astype(int) - pixels[..., 2] > 100).any()  # an original's red bar is on it
    assert data("verify", whole, *flags, "--sheet", tmp_path / "b.png", "--sample", 5) == 0
    with Image.open(tmp_path / "b.png") as sheet:
        assert sheet.width < pixels.shape[1]  # decoded alone


def test_a_set_of_another_vq(whole: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert data("verify", whole) == 0
    assert (
        "nothing was decoded or encoded again" in (out := capsys.readouterr().out)
        and "give --vq-config and --vq-checkpoint" in out
    )
    for request in (["--sheet", tmp_path / "a.png"], ["--input", pairs]):
        assert "did not make these codes; give the one that did with --vq-config and --vq-checkpoint" in refused(
            capsys, "verify", whole, *request
        )
    other = make_vq(tmp_path / "other", seed=1)
    flags = ["--vq-config", other[0].partition("=")[2], "--vq-checkpoint", other[1].partition("=")[2]]
    lines = listed(capsys, whole, *flags, "--input", pairs, "--sheet", tmp_path / "a.png")
    assert len(lines) == 1 and "codes of another VQ" in lines[0] and not (tmp_path / "a.png").exists()
    assert "go together" in refused(capsys, "verify", whole, *flags[:2])
    assert "codes of another VQ" in refused(capsys, "inspect", whole, "--decode", tmp_path / "a.png", *flags)


def test_a_flipped_byte_is_found(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open(copy / "shard-00001.tar", "r+b") as file:
        file.seek(512 + 40)  # in the header of the first npy
        file.write(b"\x07")
    lines = listed(capsys, copy)
    assert (
        lines[0].startswith("shard-00001.tar: content changed")
        and lines[1] == "shard-00001.tar, 000000008: codes do not parse"
        and len(lines) == 2
    )


def test_cut_and_missing_tars_are_named(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.truncate(copy / "shard-00000.tar", 9000)
    (copy / "shard-00002.tar").unlink()
    lines = listed(capsys, copy)
    assert (
        any(line.startswith("shard-00000.tar: 9,000 bytes, index.json says") for line in lines)
        and "shard-00002.tar: missing" in lines
    )
    assert any("samples in chunk 0, index.json says 7" in line for line in lines)


def test_codes_out_of_range_and_of_another_shape(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewrite(copy, 0, changed_codes("000000002", lambda codes: codes.__setitem__((0, 0), CODEBOOK)))
    rewrite(
        copy, 1, lambda name, old: old.replace(b'"height":64,', b'"height":72,') if name == "000000008.json" else old
    )
    assert listed(capsys, copy) == [
        "shard-00000.tar, 000000002: code beyond the codebook",
        "shard-00001.tar, 000000008: a grid of 8x8 codes is 64x64 pixels, its json says 64x72",
    ]


def test_what_the_index_says_wrong(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sound = (copy / "index.json").read_text()
    for change, line in [
        (lambda i: i["totals"].update(captions=7), "index.json: 24 captions, index.json says 7"),
        (lambda i: i["codes"].update(used=1), "used, index.json says 1"),
        (
            lambda i: i["dropped"].update({"not an image": 4}),
            "dropped.jsonl: 1 rows for 'not an image', index.json says 4",
        ),
        (
            lambda i: i["shardlist"][1].update(chunks=[[0, 5, 0]]),
            "shard-00001.tar: the chunks in index.json do not cover its 7 samples in order",
        ),
        (
            lambda i: i["shardlist"][1].update(nsamples=9),
            "shard-00001.tar: 7 samples in chunk 0, index.json says 9",
        ),
        (lambda i: i["samples"].update(sha256="0" * 64), "samples.npy: missing, or not the one of index.json"),
        (lambda i: i.pop("grids"), "index.json: its grids are not those of its images"),
        (lambda i: i["shardlist"][1]["totals"].update(images=2), "shard-00001.tar: 7 images, index.json says 2"),
        (lambda i: i["shardlist"].reverse(), "index.json: shard-00003.tar stands where shard-00000.tar belongs"),
        (
            lambda i: i.pop("vq_fingerprint"),
            "index.json: says no vq_fingerprint, codebook_size or downsampling, though shard-00000.tar has codes",
        ),
        (
            lambda i: i["shardlist"][0].update(url="../x.tar"),
            "index.json: shard 0: url '../x.tar' is not a file name in the folder",
        ),
        (lambda i: i["shardlist"][0].update(chunks=[[0, 7]]), "index.json: shard-00000.tar: chunks are not lists"),
    ]:
        edit_index(copy, change)
        assert any(line in found for found in listed(capsys, copy)), line
        (copy / "index.json").write_text(sound)


def test_repeated_keys(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(copy / "shard-00000.tar", copy / "shard-00001.tar")
    edit_index(copy, lambda i: i["shardlist"].__setitem__(1, {**i["shardlist"][0], "url": "shard-00001.tar"}))
    lines = listed(capsys, copy)
    assert len(lines) == 8 and "shard-00001.tar, 000000000: the same key as in shard-00000.tar" in lines


def test_many_problems_of_a_kind_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = text_set(tmp_path / "texts", samples=30)
    rewrite(folder, 0, lambda name, old: b"\xff" * len(old) if name.endswith(".txt") else old)
    lines = listed(capsys, folder)
    assert (
        len(lines) == 21
        and lines[0] == "shard-00000.tar, 000000: text is not UTF-8"
        and lines[20] == "and 10 more: samples: text is not UTF-8"
    )


def test_a_set_that_is_not_what_its_source_gives(
    copy: Path, pairs: Path, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def other(codes: np.ndarray) -> None:
        codes[:] = (codes + 1) % CODEBOOK

    rewrite(copy, 1, changed_codes("000000009", other))
    rewrite(copy, 2, lambda name, old: b"a bad bar" if name == "000000016.txt" else old)
    lines = listed(capsys, copy, "--input", pairs, *flags)
    assert [line for line in lines if "index.json" not in line][:2] == [
        "shard-00001.tar, 000000009: 63 of 63 codes are not those of its image",
        "shard-00002.tar, 000000016: text 'a bad bar' there, 'a red bar' in the source",
    ]
    assert any("more than the 0.1% that another device or batch explains" in line for line in lines)


def test_rows_that_were_dropped_are_compared_too(
    copy: Path, pairs: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    dropped = (copy / "dropped.jsonl").read_text()
    (copy / "dropped.jsonl").write_text(dropped.replace('"row":3', '"row":4'))
    lines = listed(capsys, copy, "--input", pairs, *flags)
    assert (
        len(lines) == 2
        and "row 3 (pairs.jsonl, row 3 (3.png)): cannot be used (not an image), yet it was not dropped" in lines[0]
    )
    assert "row 4" in lines[1] and "but it can be used" in lines[1]


def test_an_input_that_is_not_the_set_s_is_refused(
    whole: Path, pairs: Path, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pairs.jsonl").write_text(pairs.read_text().replace("red", "blue"))
    message = refused(capsys, "verify", whole, "--input", tmp_path / "pairs.jsonl", *flags)
    assert "--input: the source is not what the set was made of: other inputs.pairs.jsonl" in message
    assert "--input=nowhere.jsonl: no such file" in refused(capsys, "verify", whole, "--input", "nowhere.jsonl", *flags)


def test_images_that_lie_elsewhere_now(
    whole: Path, pairs: Path, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(pairs, tmp_path / "pairs.jsonl")
    lines = listed(capsys, whole, "--input", tmp_path / "pairs.jsonl", *flags, "--sample", 8)
    assert len(lines) >= 6 and all("cannot be used (missing image)" in line for line in lines)
    assert (
        data("verify", whole, "--input", tmp_path / "pairs.jsonl", "--images", pairs.parent, *flags, "--sample", 8) == 0
    )


def test_the_packaged_source_needs_no_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "docs"
    assert (
        main(
            [
                "tokenize",
                "tokenize.source=python_docs",
                "tokenize.split=test",
                f"tokenize.output={output}",
                "tokenize.progress=false",
            ]
        )
        == 0
    )
    capsys.readouterr()
    assert data("verify", output, "--sample", 10) == 0
    assert "10 rows are as in the source" in capsys.readouterr().out
    assert "a set of texts, there are no images" in refused(capsys, "verify", output, "--sheet", tmp_path / "a.png")


# --- describe and inspect


def test_describe_says_what_is_in_a_set(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert data("describe", whole, "--plot", tmp_path / "card.png") == 0
    out = capsys.readouterr().out
    index = json.loads((whole / "index.json").read_text())
    lengths = sorted(len(CAPTIONS[n % 4].strip()) for n in range(ROWS) if n not in (3, 12))
    words = sorted(len(CAPTIONS[n % 4].split()) for n in range(ROWS) if n not in (3, 12))
    for expected in [
        "24, 24 with a caption",
        "8x8 (64x64 px): 12",
        "7x9 (72x56 px): 12",
        f"min 9, median {lengths[11]}, mean {sum(lengths) / 24:,.1f}, 95% {lengths[22]}, max {lengths[23]}",
        f"min {words[0]}, median {words[11]}, mean {sum(words) / 24:,.1f}, 95% {words[22]}, max {words[23]}",
        "aspect ratio above 2: 1, not an image: 1",
        f"{index['codes']['used']} of 64 in use",
        f"perplexity {index['codes']['perplexity']:,.1f}",
        index["vq_fingerprint"][:16],
        "26 rows in pairs.jsonl",
    ]:
        assert expected in out, expected
    with Image.open(tmp_path / "card.png") as plot:
        assert plot.format == "PNG" and plot.width > 1000


def test_describe_a_text_set_and_a_damaged_one(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert data("describe", text_set(tmp_path / "texts"), "--plot", tmp_path / "card.png") == 0
    out = capsys.readouterr().out
    assert "texts, words" in out and "codes" not in out and (tmp_path / "card.png").is_file()
    rewrite(copy, 0, changed_codes("000000002", lambda codes: codes.__setitem__((0, 0), CODEBOOK)))
    assert data("describe", copy) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "damaged sample: 1: `liquid data verify" in out and "samples 23 " in out


def test_inspect_by_number_and_by_key(
    whole: Path, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sample = ShardSet(whole).sample(9)
    assert sample is not None and sample["key"] == "000000010"  # row 3 is not there
    capsys.readouterr()
    assert data("inspect", whole, 9, "--decode", tmp_path / "decoded.png", *flags) == 0
    out = capsys.readouterr().out
    assert (
        out.startswith("000000010  (sample 9 of 24, in shard-00001.tar)")
        and "猫 🐱" in out
        and "original_width: 64" in out
    )
    assert " ".join(map(str, sample["codes"][3])) in " ".join(out.split())
    with Image.open(tmp_path / "decoded.png") as decoded:
        assert decoded.size == (sample["info"]["width"], sample["info"]["height"])
    assert data("inspect", whole, "000000010") == 0 and capsys.readouterr().out.split("\n\n")[0] == out.split("\n\n")[0]
    assert "no sample 24: numbers go from 0 to 23" in refused(capsys, "inspect", whole, 24)
    assert "no sample cat: numbers go from 0 to 23, and no key is called so" in refused(capsys, "inspect", whole, "cat")


def test_inspect_a_text_and_a_damaged_sample(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = text_set(tmp_path / "texts")
    assert data("inspect", texts, 3) == 0
    assert "  document 3: " in capsys.readouterr().out
    assert "it is a text" in refused(capsys, "inspect", texts, 3, "--decode", tmp_path / "a.png")
    rewrite(copy, 0, changed_codes("000000002", lambda codes: codes.__setitem__((0, 0), CODEBOOK)))
    assert "sample 2 is damaged (code beyond the codebook)" in refused(capsys, "inspect", copy, 2)


@pytest.mark.parametrize("tool", ["verify", "describe", "inspect"])
def test_what_is_no_set(
    tool: str, parts: list[Path], copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    for path, message in [
        (tmp_path / "nowhere", "no such folder"),
        (tmp_path / "file", "no such folder"),
        (tmp_path, "no index.json"),
        (parts[0], "no index.json"),
    ]:
        assert message in refused(capsys, tool, path)
    flag = {"verify": "--sheet", "describe": "--plot", "inspect": "--decode"}[tool]
    assert "give a name that ends in .png" in refused(capsys, tool, copy, flag, tmp_path / "a.jpg")
    assert sorted(p.name for p in parts[0].iterdir()) == [".partial", "shard-00000.tar"]  # no index was made there
    os.truncate(copy / "index.json", 700)
    capsys.readouterr()
    assert data(tool, copy) == (1 if tool == "verify" else 2)
    out, err = capsys.readouterr()
    assert len((out + err).strip().splitlines()) == 1 and "index.json: not a shard index" in out + err
