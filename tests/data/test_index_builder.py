"""Folders of tars without index.json: the index that is made for them, and when none is."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

from liquid_train.data.index_builder import build_index
from liquid_train.data.shards import ShardSet
from tests.data.test_shards import CODEBOOK, as_older_version, member_offset, overwrite
from tests.range_server import RangeServer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tars(original: Path, tmp_path: Path) -> Path:
    path = Path(shutil.copytree(original, tmp_path / "set"))
    (path / "index.json").unlink()
    (path / "samples.npy").unlink()
    return path


def write_tar(path: Path, files: dict[str, bytes], kind: int = tarfile.PAX_FORMAT) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def texts(count: int, name: str = "{:04d}") -> dict[str, bytes]:
    return {
        f"{name.format(n)}.{kind}": content
        for n in range(count)
        for kind, content in (("json", b"{}"), ("txt", f"text {n}".encode()))
    }


def plain(shards: ShardSet) -> list[dict]:
    return [{k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in sample.items()} for sample in shards]


def test_index_is_the_writers_own_and_is_kept(original: Path, tars: Path, caplog: pytest.LogCaptureFixture) -> None:
    shards = ShardSet(tars)
    assert shards.shards == ShardSet(original).shards
    assert (tars / "samples.npy").read_bytes() == (original / "samples.npy").read_bytes()
    assert plain(shards) == plain(ShardSet(original)) and shards.digest == ShardSet(original).digest
    assert "no index.json there: it is made now, 3 tars" in caplog.text and "s; it is kept there now" in caplog.text
    assert sorted(p.name for p in tars.iterdir()) == sorted(p.name for p in original.iterdir())
    caplog.clear()
    assert ShardSet(tars).index == shards.index and not caplog.text
    shards.check_files()


def test_unknown_vq_is_taken_where_codes_are_in_range(tars: Path, caplog: pytest.LogCaptureFixture) -> None:
    shards = ShardSet(tars)
    assert shards.fingerprint is None and shards.codebook_size is None and shards.index["max_code"] == CODEBOOK - 1
    caplog.clear()
    assert ShardSet(tars, vq_fingerprint="e" * 64, codebook_size=CODEBOOK).codebook_size == CODEBOOK
    assert caplog.text.count("cannot be checked") == 1
    with pytest.raises(ValueError, match="codes up to 511, beyond the codebook of 256 that is asked for; .*vq.config"):
        ShardSet(tars, codebook_size=256)
    _, data = member_offset(tars / "shard-00000.tar", "train/img-00300.codes.npy")
    overwrite(tars / "shard-00000.tar", data + 128, b"\xff\xff")
    shards = ShardSet(tars, codebook_size=CODEBOOK)
    assert shards.sample(300) is None and shards.bad == {"code beyond the codebook": 1}


def test_texts_need_no_vq(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_tar(tmp_path / "a.tar", texts(300))
    shards = ShardSet(tmp_path, vq_fingerprint="e" * 64, codebook_size=CODEBOOK)
    assert len(list(shards)) == 300 and "max_code" not in shards.index and "cannot be checked" not in caplog.text


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars_of_other_programs(tmp_path: Path, kind: int) -> None:
    """Names too long for a plain header, folders and links between the samples, and a table of contents in front."""
    with tarfile.open(tmp_path / "b.tar", "w", format=kind) as tar:
        for n in range(600):
            folder = tarfile.TarInfo(f"part-{n}")
            folder.type = tarfile.DIRTYPE
            link = tarfile.TarInfo(f"part-{n}/link.txt")
            link.type, link.linkname = tarfile.SYMTYPE, "nowhere"
            for extra in (folder, link):
                tar.addfile(extra)
            for extension, content in (("txt", f"text {n}".encode()), ("json", b"{}")):
                name = f"part-{n}/{'long' * 22}{n if kind == tarfile.USTAR_FORMAT else 'ü' * 90 + str(n)}.{extension}"
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    shards = ShardSet(tmp_path)
    assert [s["text"] for s in shards] == [f"text {n}" for n in range(600)] and not shards.bad
    assert shards.sample(300)["text"] == "text 300"  # type: ignore[index,typeddict-item]


def test_damaged_tars(tars: Path) -> None:
    """Samples after the damage are found; of a tar that ends early, those before its end."""
    tar = tars / "shard-00000.tar"
    overwrite(tar, member_offset(tar, "train/img-00300.json")[0], b"\xff" * 512)
    with open(tar, "r+b") as file:
        file.truncate(member_offset(tars / "shard-00000.tar", "train/img-00299.json")[0] + 4 * 10**5)
    shards = ShardSet(tars)
    shards.check_files()
    numbers = [s["info"]["n"] for s in shards]
    first = [n for n in numbers if n < 600]
    assert (
        len(first) > 350
        and first == [n for n in range(first[-1] + 1) if n != 300]
        and numbers[len(first) :] == list(range(600, 900))
    )


def test_where_it_cannot_be_kept(tars: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("liquid_train.data.storage.os.replace", refuse)
    monkeypatch.setattr("liquid_train.files.os.replace", refuse)
    assert len(list(ShardSet(tars))) == 900
    assert (
        f"could not be kept there (Permission denied); it is made again at every start: `liquid data index {tars}` "
        "keeps it"
    ) in caplog.text
    with pytest.raises(ValueError, match="cannot be written to .Permission denied.; index a copy"):
        build_index(tars)
    assert sorted(p.name for p in tars.iterdir()) == ["shard-00000.tar", "shard-00001.tar", "shard-00002.tar"]


def test_build_index(tars: Path) -> None:
    index = build_index(tars)
    assert index == json.loads((tars / "index.json").read_text()) and index["totals"] == {
        "samples": 900,
        "images": 900,
        "texts": 0,
    }
    with pytest.raises(ValueError, match=r"has an index.json with its samples.npy; remove index.json first"):
        build_index(tars)


def test_an_older_version_s_index_is_completed(original: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(original, tmp_path / "set"))
    as_older_version(path)
    assert plain(ShardSet(path)) == plain(ShardSet(original))
    build_index(path)
    for name in ("index.json", "samples.npy"):
        assert json.loads((path / "index.json").read_text()) == json.loads((original / "index.json").read_text())
        assert (path / name).exists() and plain(ShardSet(path)) == plain(ShardSet(original))
    as_older_version(path)
    overwrite(path / "shard-00002.tar", 600, b"x")
    with pytest.raises(ValueError, match="shard-00002.tar: not the tar that index.json was made of"):
        build_index(path)
    (path / "index.json").write_text("{}")
    with pytest.raises(ValueError, match="index.json: not a shard index; remove it first"):
        build_index(path)


def test_refusals(tmp_path: Path, tars: Path) -> None:
    for path, build in [
        (p, b) for p in ("nowhere", "empty", "pictures", "apart", "unfinished") for b in (ShardSet, build_index)
    ]:
        folder = tmp_path / path
        if path == "nowhere":
            message = "[Nn]o such f"
        elif path == "empty":
            folder.mkdir(exist_ok=True)
            message = "no index.json there, and no tars"
        elif path == "pictures":
            write_tar(folder / "a.tar", {f"{n}.{kind}": b"x" for n in range(9) for kind in ("jpg", "cls")})
            message = r"no sample in its 1 tars has codes or text that can be used \(no json: 9\)"
        elif path == "apart":
            write_tar(folder / "a.tar", dict(sorted(texts(5).items(), key=lambda f: f[0][-3:])))
            message = "a.tar: the files of sample 0000 do not follow one another; .*tar --sort=name"
        else:
            shutil.copytree(tars, folder, dirs_exist_ok=True)
            (folder / ".partial").mkdir(exist_ok=True)
            message = "no index.json there: not finished; run `liquid tokenize` again"
        with pytest.raises(ValueError, match=f"{path}.*{message}"):
            build(folder)
        assert not (folder / "index.json").exists()


PROGRAM = """
import sys
from liquid_train.data.shards import ShardSet
print("ready", flush=True)
sys.stdin.read(1)
print(len(list(ShardSet(sys.argv[1]))))
"""


def test_processes_at_once(tars: Path, original: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tars)]
    running = [
        subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    for process in running:
        assert process.stdin is not None and process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in running:
        assert process.stdin is not None
        process.stdin.write("x")
        process.stdin.flush()
    answers = [process.communicate() for process in running]
    assert [out for out, _ in answers] == ["900\n"] * 3
    assert "".join(err for _, err in answers).count("it is made now") == 1  # the others waited and found it
    assert sorted(p.name for p in tars.iterdir()) == sorted(p.name for p in original.iterdir())


@pytest.fixture
def urls(tars: Path) -> Iterator[tuple[str, str, RangeServer]]:
    pytest.importorskip("aiohttp", reason="fsspec reads http with aiohttp: pip install aiohttp")
    system = fsspec.filesystem("memory")
    system.put(f"{tars}/", "memory://unindexed/", recursive=True)
    with RangeServer(tars.parent).running() as server:
        yield "memory://unindexed", f"{server.url}/set", server
    system.store.clear()


def test_remote_tars(urls: tuple[str, str, RangeServer], original: Path, caplog: pytest.LogCaptureFixture) -> None:
    memory, http, server = urls
    for url in (memory, http):
        caplog.clear()
        shards = ShardSet(url)
        assert plain(shards) == plain(ShardSet(original)) and shards.digest == ShardSet(original).digest
        assert f"`liquid data index {url}` keeps it" in caplog.text
    assert not fsspec.filesystem("memory").exists(f"{memory}/index.json")  # nobody asked for it
    build_index(memory)
    caplog.clear()
    assert len(ShardSet(memory)) == 900 and not caplog.text
    with pytest.raises(ValueError, match="cannot be written to .HTTP 501.; index a copy"):
        build_index(http)
    # trying again would not help
    assert [r for r in server.requests if r[0] == "PUT"] == [("PUT", "/set/samples.npy", None)]
