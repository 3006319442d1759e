"""`liquid tokenize` into an object store: moto's S3 server, which s3fs talks to as to Amazon's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import fsspec
import pytest

from data_prep import tokenize
from liquid_train.cli import main
from liquid_train.data import outage, remote
from liquid_train.data.shards import ShardSet
from liquid_train.errors import UserError
from tests.data_prep.test_tokenize import content
from tests.source_files import config, draw, jsonl, tar
from tests.source_files import content as image_content
from tests.tiny_vq import make_vq

pytest.importorskip("s3fs", reason="pip install s3fs")
ROOT = Path(__file__).resolve().parents[2]
FIXED = ["tokenize.shard_size=2", "tokenize.batch_size=2", "tokenize.workers=0", "tokenize.progress=false"]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = pytest.importorskip("moto.server", reason="pip install 'moto[server]'").ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The file system in which there is a bucket "sets"."""
    for key, value in {
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("FSSPEC_S3_ENDPOINT_URL", endpoint)  # for commands; it is read when fsspec is imported
    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": endpoint})
    monkeypatch.setattr(outage, "FIRST_PAUSE", 0.001)
    system = fsspec.filesystem("s3", skip_instance_cache=True)
    system.mkdir("sets")
    yield system
    system.invalidate_cache()
    system.rm("sets", recursive=True)


@pytest.fixture(scope="module")
def vq(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return make_vq(tmp_path_factory.mktemp("vq") / "a")


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    draw(folder, 9)
    rows = [{"image_path": f"{number}.png", "text": f"number {number}"} for number in range(10)]  # one is missing
    jsonl(folder / "pairs.jsonl", rows)
    return folder / "pairs.jsonl"


def run(given: Path, output: object, vq: list[str], *more: str) -> None:
    settings = [f"tokenize.output={output}", *FIXED, "tokenize.max_bad=0.5", *vq, *more]
    tokenize.run(config("pairs", given, *settings))


def stored(system: Any) -> dict[str, str]:
    system.invalidate_cache()
    names = [name for name in system.find("sets/set") if "/.partial/" not in name]
    return {name.removeprefix("sets/set/"): sha256(system.cat_file(name)).hexdigest() for name in names}


def test_the_same_bytes_as_in_a_folder(
    bucket: Any, given: Path, vq: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(given, tmp_path / "set", vq)
    for part in (1, 0):
        run(given, "s3://sets/set", vq, f"tokenize.part={part}/2")
    assert stored(bucket) == content(tmp_path / "set") and not bucket.exists("sets/set/.partial")
    assert len(ShardSet("s3://sets/set")) == 9
    capsys.readouterr()
    run(given, "s3://sets/set", vq)
    assert "s3://sets/set: complete already, 9 samples" in capsys.readouterr().out
    bucket.rm_file("sets/set/shard-00003.tar")
    run(given, "s3://sets/set", vq)
    assert stored(bucket) == content(tmp_path / "set")
    run(given, "s3://sets/set", vq, "tokenize.shard_size=5", "tokenize.overwrite=true")
    run(given, tmp_path / "other", vq, "tokenize.shard_size=5")
    assert stored(bucket) == content(tmp_path / "other")


def test_a_killed_upload_goes_on(bucket: Any, given: Path, vq: list[str], tmp_path: Path) -> None:
    """kill -9 before the n-th object is written: a shard without its tar, one of all but the last, and the index."""
    run(given, tmp_path / "set", vq)
    program = textwrap.dedent("""
        import os, signal, sys
        from liquid_train.data.remote import RemoteFolder
        from liquid_train.cli import main
        write, names, last = RemoteFolder.write, [], sys.argv[1]
        def killed(self, name, content):
            if name == last:
                os.kill(os.getpid(), signal.SIGKILL)
            write(self, name, content)
        RemoteFolder.write = killed
        main(sys.argv[2:])
    """)
    settings = ["tokenize", "tokenize.source=pairs", f"tokenize.input={given}", "tokenize.output=s3://sets/set"]
    command = [*settings, *FIXED, "tokenize.max_bad=0.5", *vq]
    for name in ("shard-00002.tar", "index.json"):
        killed = subprocess.run([sys.executable, "-c", program, name, *command], cwd=ROOT, env=os.environ | {})
        assert killed.returncode == -signal.SIGKILL
        there = stored(bucket)
        assert "index.json" not in there and there.items() <= content(tmp_path / "set").items()
    with pytest.raises(
        UserError, match="s3://sets/set: no index.json there: not finished; run `liquid tokenize` again"
    ):
        ShardSet("s3://sets/set")
    kept = bucket.info("sets/set/shard-00000.tar")["LastModified"]
    run(given, "s3://sets/set", vq)
    assert stored(bucket) == content(tmp_path / "set")
    bucket.invalidate_cache()
    assert bucket.info("sets/set/shard-00000.tar")["LastModified"] == kept


def test_what_was_not_written_by_this_program_stays(bucket: Any, given: Path, vq: list[str]) -> None:
    bucket.pipe_file("sets/set/shard-00000.tar", b"mine")
    bucket.pipe_file("sets/set/notes.txt", b"mine")
    for more in ([], ["tokenize.overwrite=true"]):
        with pytest.raises(UserError, match=r"s3://sets/set holds another set: .*\(shard-00000.tar\): not written"):
            run(given, "s3://sets/set", vq, *more)
    assert set(stored(bucket)) == {"shard-00000.tar", "notes.txt"}


def test_a_bucket_that_does_not_exist_is_one_line(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    jsonl(tmp_path / "t.jsonl", [{"text": "a"}])
    call = ["tokenize", "tokenize.source=text", "tokenize.input=t.jsonl", "tokenize.progress=false"]
    for output in ("s3://nowhere/set", "https://host/set", "s4://bucket/set"):
        assert main([*call, f"tokenize.output={output}"]) == 2
        said = capsys.readouterr().err
        assert output.partition("://")[0] in said and "Traceback" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["t.jsonl"]


def test_index_is_written_last(bucket: Any, given: Path, vq: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    written, write = [], remote.RemoteFolder.write

    def noted(folder: remote.RemoteFolder, name: str, content: bytes) -> None:
        written.append(name)
        write(folder, name, content)

    monkeypatch.setattr(remote.RemoteFolder, "write", noted)
    run(given, "s3://sets/set", vq)
    assert written[-3:] == ["dropped.jsonl", "samples.npy", "index.json"]
    assert json.loads(bucket.cat_file("sets/set/index.json"))["dropped"] == {"missing image": 1}


def test_input_from_a_store(
    bucket: Any, given: Path, vq: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lists with their images, texts, and tars by a pattern: the same shards as from local files."""
    jsonl(tmp_path / "t" / "a.jsonl", [{"text": f"text {n}"} for n in range(5)])
    for name in ("0", "1"):
        tar(tmp_path / f"x-{name}.tar", [(f"{name}.png", image_content(int(name))), (f"{name}.txt", b"words")])
    for folder, at in ((given.parent, "pairs"), (tmp_path / "t", "t")):
        bucket.put(f"{folder}/", f"sets/in/{at}/", recursive=True)
    bucket.put([str(tmp_path / f"x-{name}.tar") for name in "01"], "sets/in/tars/")
    for source, there, here in (
        ("pairs", "s3://sets/in/pairs/pairs.jsonl", given),
        ("text", "s3://sets/in/t", tmp_path / "t"),
        ("webdataset", "s3://sets/in/tars/x-{0..1}.tar", tmp_path / "x-{0..1}.tar"),
        ("webdataset", "s3://sets/in/tars/*.tar", tmp_path / "*.tar"),
    ):
        output = tmp_path / f"sets-{len(list(tmp_path.iterdir()))}"
        sets = []
        for where, name in ((there, "remote"), (here, "local")):
            settings = [f"tokenize.output={output / name}", *FIXED, "tokenize.max_bad=0.5", *vq]
            tokenize.run(config(source, where, *settings))
            sets.append({name: digest for name, digest in content(output / name).items() if name != "index.json"})
        assert sets[0] == sets[1] and len(sets[0]) > 0, source
        capsys.readouterr()
        tokenize.run(config(source, there, f"tokenize.output={output / 'remote'}", *FIXED, "tokenize.max_bad=0.5", *vq))
        assert "nothing to do" in capsys.readouterr().out
    text = [f"tokenize.output={tmp_path / 'again'}", *FIXED]
    tokenize.run(config("text", "s3://sets/in/t", *text))
    bucket.pipe_file("sets/in/t/a.jsonl", (tmp_path / "t" / "a.jsonl").read_bytes().replace(b"0", b"9"))
    with pytest.raises(UserError, match="source.inputs.a.jsonl.state: "):
        tokenize.run(config("text", "s3://sets/in/t", *text))
    with pytest.raises(UserError, match="tokenize.input=s3://sets/in/nothing: no .jsonl.* file there"):
        tokenize.run(config("text", "s3://sets/in/nothing", *text))
    with pytest.raises(
        UserError, match="tokenize.output=s3://sets/in/t/set: lies inside tokenize.input=s3://sets/in/t"
    ):
        tokenize.run(config("text", "s3://sets/in/t", "tokenize.output=s3://sets/in/t/set", *FIXED))


def test_no_credentials_are_not_waited_for(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(key)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setitem(fsspec.config.conf, "s3", {"skip_instance_cache": True})
    jsonl(tmp_path / "t.jsonl", [{"text": "a"}])
    call = [
        "tokenize",
        "tokenize.source=text",
        f"tokenize.input={tmp_path / 't.jsonl'}",
        "tokenize.output=s3://sets/set",
    ]
    pauses: list[float] = []
    monkeypatch.setattr("liquid_train.data.outage.time.sleep", pauses.append)
    assert main(call) == 2 and "NoCredentialsError" in capsys.readouterr().err and not pauses
