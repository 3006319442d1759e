"""`tokenize.keep`: keys of a source's rows in KEY.json, and as what `liquid data filter --where` finds them."""

from __future__ import annotations

import datetime
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from liquid_train.cli import main
from liquid_train.data.shards import ShardSet
from tests.data_prep.test_filter import scene
from tests.tiny_vq import make_vq


@pytest.fixture(scope="module")
def vq(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return make_vq(tmp_path_factory.mktemp("vq") / "a")


def png(seed: int) -> bytes:
    content = io.BytesIO()
    Image.fromarray(scene(seed, 64)).save(content, "PNG")
    return content.getvalue()


def tokenize(source: str, where: Path, output: Path, *more: str, status: int = 0) -> list[dict[str, Any]]:
    """KEY.json of all samples."""
    arguments = [f"tokenize.source={source}", f"tokenize.input={where}", f"tokenize.output={output}"]
    arguments += ["tokenize.progress=false", "tokenize.workers=0", "tokenize.hashes=false"]
    assert main(["tokenize", *arguments, *more]) == status
    return [sample["info"] for sample in ShardSet(output)] if not status else []


def test_webdataset(tmp_path: Path, vq: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """As img2dataset writes it: KEY.json has the url, scores, and sizes of its own."""
    with tarfile.open(tmp_path / "00007.tar", "w") as tar:
        for n in range(3):
            info = {
                "url": f"https://a.b/{n}.jpg",
                "similarity": n / 4,
                "key": f"{n:05d}",
                "width": 999,
                "exif": {"a": 1},
            }
            if n == 1:
                del info["similarity"]
            for extension, content in (("png", png(n)), ("txt", b"words"), ("json", json.dumps(info).encode())):
                member = tarfile.TarInfo(f"00007{n:04d}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    keep = "tokenize.keep=[url,similarity,key,exif.a,__key__,__url__]"
    infos = tokenize("webdataset", tmp_path / "00007.tar", tmp_path / "set", keep, *vq)
    size = {"width": 64, "height": 64, "source": "webdataset"}
    assert infos[2] == {
        "url": "https://a.b/2.jpg",
        "similarity": 0.5,
        "key": "00002",
        "exif": {"a": 1},
        "__key__": "000070002",
        "__url__": "00007.tar",
        **size,
    }
    assert infos[1].keys() == infos[2].keys() - {"similarity"}
    capsys.readouterr()
    where = "not similarity < 0.3 and exif.a = 1 and json.key != key and url matches '^https://a'"
    assert main(["data", "filter", f"{tmp_path}/set", "--where", where, "--output", f"{tmp_path}/good"]) == 0
    out = capsys.readouterr().out
    assert "1 of 3 samples" in out and "where cannot be decided: no field similarity: 1" in out
    assert [sample["info"] for sample in ShardSet(tmp_path / "good")] == [infos[2]]
    assert main(["data", "verify", f"{tmp_path}/set", "--input", f"{tmp_path}/00007.tar", *flags(vq)]) == 0


def flags(vq: list[str]) -> list[str]:
    return ["--vq-config", vq[0].partition("=")[2], "--vq-checkpoint", vq[1].partition("=")[2]]


def test_parquet(tmp_path: Path, vq: list[str]) -> None:
    rows = {
        "image": [png(0), png(1)],
        "text": ["a", "b"],
        "score": [0.5, float("nan")],
        "phash": [b"\x01\xff", None],
        "when": [datetime.datetime(2024, 5, 6, 7, 8), None],
        "meta": [{"lang": "de", "p": [1.0, float("inf")]}, {"lang": None, "p": None}],
    }
    pyarrow.parquet.write_table(pyarrow.table(rows), tmp_path / "a.parquet")
    keep = "tokenize.keep=[score,phash,when,meta.lang,meta.p,text_of]"
    tokenize("parquet", tmp_path / "a.parquet", tmp_path / "set", keep, *vq, status=2)
    infos = tokenize("parquet", tmp_path / "a.parquet", tmp_path / "set", keep.replace(",text_of", ""), *vq)
    assert infos[0] | {"width": 0, "height": 0, "source": ""} == {
        "score": 0.5,
        "phash": "01ff",
        "when": "2024-05-06T07:08:00",
        "meta": {"lang": "de", "p": [1.0, None]},
        "width": 0,
        "height": 0,
        "source": "",
    }
    assert infos[1].keys() == {"width", "height", "source"}


def test_lists_and_texts(tmp_path: Path, vq: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path(tmp_path / "0.png").write_bytes(png(0))
    row = {"image_path": "0.png", "text": "words", "score": 3, "messages": 1}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({**row, "score": None}) + "\n")
    infos = tokenize("pairs", tmp_path / "a.jsonl", tmp_path / "a", "tokenize.keep=[score]", *vq)
    assert [info.get("score") for info in infos] == [3, None]
    infos = tokenize("text", tmp_path / "a.jsonl", tmp_path / "b", "tokenize.keep=[score,image_path]")
    assert infos[0] == {"score": 3, "image_path": "0.png", "source": "text"}
    capsys.readouterr()
    for name, message in (
        ("width", "KEY.json has width of its own"),
        ("messages", "KEY.json has messages of its own"),
        ("scores", "no row of"),
    ):
        tokenize("text", tmp_path / "a.jsonl", tmp_path / "c", f"tokenize.keep=[{name}]", status=2)
        error = capsys.readouterr().err.strip()
        assert message in error and f"tokenize.keep={name}" in error and "\n" not in error
    assert np.array(infos).shape == (2,)
