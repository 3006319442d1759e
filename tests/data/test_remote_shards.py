"""Shard sets after URLs: the same samples as in a folder, by ranges of bytes; the cache of chunks; what goes wrong on
the way."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from torch.utils.data import DataLoader, Dataset

from liquid_train.data import outage, remote
from liquid_train.data.chunk_cache import ChunkCache
from liquid_train.data.loader import BatchLoader, LoaderError, open_set
from liquid_train.data.settings import DataConfig, SourceConfig
from liquid_train.data.shard_format import Sample
from liquid_train.data.shards import ShardSet
from liquid_train.errors import UserError
from liquid_train.vocabulary import Vocabulary, train_bpe
from tests.data.test_shards import member_offset, read
from tests.range_server import RangeServer
from tests.shard_sets import image_set

pytest.importorskip("aiohttp", reason="fsspec reads http with aiohttp: pip install aiohttp")
ROOT = Path(__file__).resolve().parents[2]
BLOCKS = [(0, 256), (256, 256), (512, 88), (600, 256), (856, 44)]  # ranges of samples: (first, count)


@pytest.fixture
def local(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "site" / "set"))


@pytest.fixture
def server(local: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RangeServer]:
    monkeypatch.setattr(outage, "FIRST_PAUSE", 0.001)
    with RangeServer(local.parent).running() as server:
        yield server


@pytest.fixture
def memory(local: Path) -> Iterator[str]:
    system, url = fsspec.filesystem("memory"), f"memory://{local.parent.parent.name}/set"
    system.put(f"{local}/", f"{url}/", recursive=True)
    yield url
    system.store.clear()


def assert_same(one: list[Sample], other: list[Sample]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert {k: v for k, v in a.items() if k != "codes"} == {
            k: v for k, v in b.items() if k != "codes"
        } and np.array_equal(a["codes"], b["codes"])


def used(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*/*"))


def test_memory_set_equals_the_local_one(local: Path, memory: str) -> None:
    here, there = ShardSet(local), ShardSet(f"{memory}/")
    there.check_files()
    assert (there.name, there.digest, there.shards) == (here.name, here.digest, here.shards) and there.path == memory
    assert_same(list(there), list(here))
    assert_same([pickle.loads(pickle.dumps(there)).sample(700)], [here.sample(700)])  # type: ignore[list-item]


def test_file_url_is_a_folder(local: Path) -> None:
    assert ShardSet(f"file://{local}").path == local


def block(shards: ShardSet, i: int) -> list[Sample]:
    """The samples of one of BLOCKS, without the damaged ones."""
    return read(shards, *BLOCKS[i])  # type: ignore[no-any-return]


def test_http_reads_ranges_alone(local: Path, server: RangeServer) -> None:
    shards = ShardSet(f"{server.url}/set")
    assert server.asked("") == [("GET", "/set/index.json", None)]
    rows = np.load(local / "samples.npy")
    assert_same(block(shards, 1), block(ShardSet(local), 1))
    first, end = (int(rows["offset"][n]) for n in (256, 512))
    at = (local / "samples.npy").stat().st_size - rows[256:].nbytes
    assert server.asked("")[1:] == [
        ("GET", "/set/samples.npy", f"bytes={at}-{at + 257 * rows.itemsize - 1}"),
        ("GET", "/set/shard-00000.tar", f"bytes={first}-{end - 1}"),
    ]
    assert_same(list(shards), list(ShardSet(local)))


def test_dataloader_workers_read_http(local: Path, server: RangeServer) -> None:
    """The parent has open connections when it forks; the workers must not use them."""
    shards = ShardSet(f"{server.url}/set")
    block(shards, 0)
    chunks = list(DataLoader(Chunks(shards), batch_size=None, num_workers=2))
    assert_same([s for chunk in chunks for s in chunk], list(ShardSet(local)))


class Chunks(Dataset[list[Sample]]):
    def __init__(self, shards: ShardSet) -> None:
        self.shards = shards

    def __len__(self) -> int:
        return len(BLOCKS)

    def __getitem__(self, i: int) -> list[Sample]:
        return block(self.shards, i)


@pytest.mark.parametrize("statuses", [[503, 429, 500], [0, 0]])
def test_passing_errors_are_tried_again(local: Path, server: RangeServer, statuses: list[int]) -> None:
    for path in ("/set/index.json", "/set/shard-00000.tar"):
        server.fail[path] = list(statuses)
    shards = ShardSet(f"{server.url}/set")
    assert_same(block(shards, 1), block(ShardSet(local), 1))
    assert not shards.bad and len(server.asked()) == len(statuses) + 1


@pytest.mark.parametrize(
    ("status", "reason"), [(404, "No such file or directory"), (403, "Permission denied"), (400, "HTTP 400")]
)
def test_what_no_wait_can_mend_ends_the_job_at_once(server: RangeServer, status: int, reason: str) -> None:
    server.fail["/set/shard-00000.tar"] = [status] * 10
    shards = ShardSet(f"{server.url}/set", retry_seconds=60)
    with pytest.raises(UserError, match=f"/set/shard-00000.tar: cannot be read now: {reason}; nothing of it was left"):
        block(shards, 1)
    assert not shards.bad and len(server.asked()) == 1
    assert len(block(shards, 3)) == 256


def test_an_outage_that_stays_ends_the_job_after_a_wait(server: RangeServer, caplog: pytest.LogCaptureFixture) -> None:
    server.fail["/set/shard-00000.tar"] = [503] * 10**4
    shards = ShardSet(f"{server.url}/set", retry_seconds=0.2)
    with pytest.raises(UserError, match="cannot be read now: HTTP 503; .* goes on once .*data.retry_seconds=0.2"):
        block(shards, 1)
    assert not shards.bad and len(server.asked()) > outage.QUIET_ATTEMPTS
    assert caplog.text.count("cannot be read now") == 1  # that it waits is said once
    server.fail.clear()
    assert len(block(shards, 1)) == 256


def test_an_outage_costs_no_sample_and_changes_no_order(server: RangeServer, local: Path, tmp_path: Path) -> None:
    image_set(local.parent / "images", samples=600, per_shard=300)
    tokenizer = train_bpe(["a teal circle, number 1"], 300, tmp_path / "bpe")
    vocabulary = Vocabulary(tokenizer, 1024, len(tokenizer) + 1024)
    url = f"{server.url}/images"
    data = DataConfig({"s": SourceConfig(url, "t2i", max_epochs=1.0)}, seq_len=512, global_batch=4, streams=1)

    def names() -> list[str]:
        found: list[str] = []
        sets = {"s": open_set(data, url, None, None)}
        for batch in BatchLoader(data, 0, sets, vocabulary, rank=0, world=1, first_step=0, steps=10**6):
            assert not batch.damage and not batch.dropped
            found += [name for s in batch.sequences.values() for name in s.names]
            if batch.ended:
                break
        return found

    data.workers = 0
    undisturbed = names()
    server.fail["/images/shard-00001.tar"] = [503, 0, 429] * 2
    assert names() == undisturbed and len(undisturbed) == 600 and not server.fail["/images/shard-00001.tar"]
    data.workers, data.retry_seconds = 1, 0.05
    server.fail["/images/shard-00001.tar"] = [503] * 10**4
    with pytest.raises(LoaderError, match="^.*/images/shard-00001.tar: cannot be read now: HTTP 503; .*$"):  # one line
        names()


def test_a_file_that_ends_before_a_chunk_is_damaged(server: RangeServer, local: Path) -> None:
    shards = ShardSet(f"{server.url}/set")
    with open(local / "shard-00000.tar", "r+b") as file:
        file.truncate(member_offset(local / "shard-00000.tar", "train/img-00256.codes.npy")[0])
    assert block(shards, 1) == [] and shards.bad == {"damaged tar": 256}


def test_damaged_range(server: RangeServer, tmp_path: Path, local: Path) -> None:
    server.change = lambda path, content: content[: len(content) // 2] if path.endswith(".tar") else content
    shards = ShardSet(f"{server.url}/set", cache=ChunkCache(tmp_path / "cache", 1))
    kept = block(shards, 0)
    assert 100 < len(kept) < 150 and shards.bad == {"damaged tar": 256 - len(kept)}
    assert len(list((tmp_path / "cache").glob("*/*"))) == 1  # of samples.npy
    server.change = None
    assert len(block(ShardSet(f"{server.url}/set", cache=ChunkCache(tmp_path / "cache", 1)), 0)) == 256


def test_index_refusals(server: RangeServer, local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.fail["/set/index.json"] = [403]
    with pytest.raises(ValueError, match=r"/set/index.json: cannot be read: Permission denied"):
        ShardSet(f"{server.url}/set")
    monkeypatch.setattr(remote, "OPENING_SECONDS", 0.05)
    server.fail["/set/index.json"] = [500] * 10**4
    with pytest.raises(ValueError, match=r"/set/index.json: cannot be read: HTTP 500"):
        ShardSet(f"{server.url}/set")
    server.fail.clear()
    with pytest.raises(ValueError, match="/nowhere: no index.json there, and no tars"):
        ShardSet(f"{server.url}/nowhere")
    with pytest.raises(ValueError, match="memory://nowhere: no index.json there, and no tars"):
        ShardSet("memory://nowhere")
    (local / "index.json").write_text("{")
    with pytest.raises(ValueError, match="/set/index.json: not a shard index"):
        ShardSet(f"{server.url}/set")


def test_server_out_of_reach(server: RangeServer, local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = ShardSet(f"{server.url}/set")
    with RangeServer(local.parent).running() as gone:
        url = gone.url
    monkeypatch.setattr(remote, "OPENING_SECONDS", 0.05)
    with pytest.raises(ValueError, match="index.json: cannot be read: ClientConnectorError"):
        ShardSet(f"{url}/set")
    shards._folder = remote.RemoteFolder(f"{url}/set")
    with pytest.raises(ValueError, match="its tars cannot be read: .*ClientConnectorError"):  # not: missing
        shards.check_files()
    with pytest.raises(UserError, match="cannot be read now: ClientConnectorError"):
        block(shards, 0)


def test_server_without_ranges_is_refused(server: RangeServer) -> None:
    server.ranges = False
    shards = ShardSet(f"{server.url}/set")
    with pytest.raises(ValueError, match="ignores byte ranges"):
        shards.check_files()
    with pytest.raises(ValueError, match="ignores byte ranges"):
        block(shards, 1)


@pytest.mark.parametrize("kind", ["http", "memory"])
def test_check_files(server: RangeServer, local: Path, memory: str, kind: str) -> None:
    def changed(name: str, content: bytes | None) -> None:
        for folder in (fsspec.filesystem("memory"), fsspec.filesystem("file")):
            path = f"{memory if folder.protocol == 'memory' else local}/{name}"
            folder.rm(path) if content is None else folder.pipe_file(path, content)

    url = memory if kind == "memory" else f"{server.url}/set"
    ShardSet(url).check_files()
    content = (local / "shard-00000.tar").read_bytes()
    changed("shard-00000.tar", content + b"x")
    with pytest.raises(
        ValueError, match=f"/set/shard-00000.tar: {len(content) + 1:,} bytes, index.json says {len(content):,}"
    ):
        ShardSet(url).check_files()
    changed("shard-00000.tar", content)
    changed("shard-00002.tar", None)
    with pytest.raises(ValueError, match="/set/shard-00002.tar: missing"):
        ShardSet(url).check_files()


def many_shards(folder: Path, count: int = 10_000) -> None:
    """An index of `count` shards over one real tar's worth of bytes, each said to be a copy of it."""
    index = json.loads((folder / "index.json").read_text())
    index["shardlist"] = [{**index["shardlist"][0], "url": f"shard-{n:05d}.tar"} for n in range(count)]
    del index["samples"]
    (folder / "index.json").write_text(json.dumps(index))


def test_ten_thousand_shards_are_listed_once(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    system = fsspec.filesystem("memory")
    index = json.loads(system.cat_file(f"{memory}/index.json"))
    index["shardlist"] = [{**index["shardlist"][0], "url": f"shard-{n:05d}.tar", "bytes": 3} for n in range(10_000)]
    del index["samples"]
    system.pipe_file(f"{memory}/index.json", json.dumps(index).encode())
    for n in range(10_000):
        system.pipe_file(f"{memory}/shard-{n:05d}.tar", b"tar")
    calls: Counter[str] = Counter()
    for name in ("ls", "info"):
        real = getattr(system, name)
        monkeypatch.setattr(
            system, name, lambda *a, _name=name, _real=real, **k: calls.update([_name]) or _real(*a, **k)
        )
    shards = ShardSet(memory)
    shards.check_files()
    assert len(shards) == 6_000_000 and calls["ls"] == 1 and calls["info"] <= 1
    system.rm(f"{memory}/shard-07000.tar")
    with pytest.raises(ValueError, match="shard-07000.tar: missing"):
        shards.check_files()


def test_ten_thousand_shards_over_http_are_spot_checked(server: RangeServer, local: Path) -> None:
    many_shards(local)
    shards = ShardSet(f"{server.url}/set")
    with pytest.raises(ValueError, match="shard-00[0-9]*.tar: missing"):
        shards.check_files()
    assert (
        len(shards) == 6_000_000
        and 2 <= len({path for method, path, _ in server.asked() if method == "HEAD"}) <= remote.SPOT_CHECKS
    )


def test_missing_packages_and_unknown_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, package in (("s3", "s3fs"), ("gs", "gcsfs")):
        monkeypatch.setitem(sys.modules, package, None)
        monkeypatch.delitem(fsspec.registry.target if hasattr(fsspec.registry, "target") else {}, kind, raising=False)
        with pytest.raises(ValueError, match=f"^{kind}://bucket/set: .*pip install {package}$"):
            ShardSet(f"{kind}://bucket/set")
    with pytest.raises(ValueError, match="^floppy://a/set: .*give a folder's path, or a URL like"):
        ShardSet("floppy://a/set")


# --- the cache of chunks


def test_cached_chunks_need_no_request(server: RangeServer, local: Path, tmp_path: Path) -> None:
    cache = ChunkCache(tmp_path / "cache", 1)
    assert_same(list(ShardSet(f"{server.url}/set", cache=cache)), list(ShardSet(local)))
    before = len(server.asked())
    again = ShardSet(f"{server.url}/set", cache=pickle.loads(pickle.dumps(cache)))
    assert_same(list(again), list(ShardSet(local)))
    assert before == 5 and len(server.asked()) == before
    block(ShardSet(local, cache=cache), 0)
    assert len(list((tmp_path / "cache").glob("*/*.chunk"))) == 5 + 4 and not list(
        (tmp_path / "cache").glob("*/*.aside")
    )


def test_a_changed_set_reads_no_stale_chunk(server: RangeServer, local: Path, tmp_path: Path) -> None:
    """Same name, sizes and offsets, other content."""
    cache, index = ChunkCache(tmp_path / "cache", 1), json.loads((local / "index.json").read_text())
    block(ShardSet(f"{server.url}/set", cache=cache), 1)
    with open(local / "shard-00000.tar", "r+b") as tar:
        tar.seek(member_offset(local / "shard-00000.tar", "train/img-00300.txt")[1])
        tar.write(b"IMAGE")
    index["shardlist"][0]["sha256"] = "0" * 64
    (local / "index.json").write_text(json.dumps(index))
    assert ShardSet(f"{server.url}/set", cache=cache).sample(300)["text"] == "IMAGE 300 ü"  # type: ignore[index]


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_damaged_cache_files_are_read_again(server: RangeServer, local: Path, tmp_path: Path, damage: str) -> None:
    cache = ChunkCache(tmp_path / "cache", 1)
    block(ShardSet(f"{server.url}/set", cache=cache), 1)
    _, file = sorted((tmp_path / "cache").glob("*/*.chunk"), key=lambda f: f.stat().st_size)  # samples.npy, the tar
    content = bytearray(file.read_bytes())
    content[5000] ^= 1
    file.write_bytes({"flip": bytes(content), "cut": bytes(content[:9000]), "empty": b""}[damage])
    for requests in (2, 2):
        shards = ShardSet(f"{server.url}/set", cache=cache)
        assert_same(block(shards, 1), block(ShardSet(local), 1))
        assert not shards.bad and len(server.asked()) == requests


def test_limit_and_order_of_the_cache(tmp_path: Path) -> None:
    cache = ChunkCache(tmp_path, 100_000 / 2**30)
    chunks = {f"chunk {n}": bytes([n]) * 9_996 for n in range(40)}
    for n, (key, chunk) in enumerate(chunks.items()):
        cache.put(key, chunk)
        assert used(tmp_path) <= 100_000
        assert cache.get("chunk 0", 9_996) == chunks["chunk 0"]  # used all the time: never goes
        assert cache.get(key, 9_996) == chunk and cache.get(key, 9_995) is None or n  # a wrong length is no hit
        cache.put(key, chunk)
        time.sleep(0.002)
    kept = [key for key, chunk in chunks.items() if cache.get(key, 9_996) == chunk]
    assert kept[0] == "chunk 0" and kept[1:] == list(chunks)[-len(kept) + 1 :] and 8 <= len(kept) <= 10
    cache.put("large", b"x" * 200_000)
    assert cache.get("large", 200_000) is None and len(kept) == len(list(tmp_path.glob("*/*.chunk")))


def test_cache_refusals(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for gib in (0, -1.0):
        with pytest.raises(ValueError, match=f"data.cache_gib={gib}: "):
            ChunkCache(tmp_path, gib)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="data.cache=.*/file: cannot be written to"):
        ChunkCache(tmp_path / "file", 1)
    cache = ChunkCache(tmp_path / "cache", 1)
    shutil.rmtree(tmp_path / "cache")  # from under a running job
    for key in ("a", "b"):
        cache.put(key, b"chunk")
        assert cache.get(key, 5) is None
    assert caplog.text.count("chunks are not kept") == 1


WRITER = """
import random, sys
from liquid_train.data.chunk_cache import ChunkCache
cache, generator = ChunkCache(sys.argv[1], float(sys.argv[2]) / 2**30), random.Random(int(sys.argv[3]))
print("ready", flush=True)
for _ in range(int(sys.argv[4])):
    n = generator.randrange(60)
    chunk = n.to_bytes(4, "little") * (5_000 + 100 * n)
    found = cache.get(str(n), len(chunk))
    assert found in (None, chunk)
    if found is None:
        cache.put(str(n), chunk)
"""


def writers(folder: Path, limit: int, count: int, rounds: int) -> list[subprocess.Popen[str]]:
    started = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder), str(limit), str(n), str(rounds)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for n in range(count)
    ]
    for process in started:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return started


def test_processes_share_a_cache_within_its_limit(tmp_path: Path) -> None:
    limit, most = 500_000, 0
    running = writers(tmp_path, limit, 3, 600)
    while any(process.poll() is None for process in running):
        with ChunkCache(tmp_path, 1)._usage():  # nobody adds a file now
            most = max(most, used_now(tmp_path))
    assert [process.returncode for process in running] == [0, 0, 0] and 0.5 * limit < most <= limit
    assert not list(tmp_path.glob("*/*.aside"))


def used_now(folder: Path) -> int:
    total = 0
    for file in folder.glob("*/*"):
        try:
            total += file.stat().st_size
        except FileNotFoundError:
            continue
    return total


def test_cache_survives_kill(tmp_path: Path) -> None:
    limit = 500_000
    for turn in range(4):
        running = writers(tmp_path, limit, 2, 10**9)
        time.sleep(0.05 + 0.05 * turn)
        for process in running:
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert used(tmp_path) <= limit
    stale = tmp_path / "ab" / "killed.aside"
    stale.parent.mkdir(exist_ok=True)
    stale.write_bytes(b"x" * 100_000)
    os.utime(stale, (0, 0))
    (tmp_path / "usage").write_bytes(b"?")
    (process,) = writers(tmp_path, limit, 1, 2_000)
    assert process.wait() == 0 and used(tmp_path) <= limit and not stale.exists()
