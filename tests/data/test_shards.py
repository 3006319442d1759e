"""Reading shard sets: random access by the index, other readers, damage, refusals."""

import contextlib
import io
import json
import pickle
import random
import tarfile
import tracemalloc

import numpy as np
import pytest

from data_prep.shard_set.writer import PARTIAL, ShardWriter, to_npy
from liquid_train.data import outage
from liquid_train.data import shards as shard_module
from liquid_train.data.index_builder import build_index
from liquid_train.data.sample_table import key_hash, write_samples
from liquid_train.data.shard_format import INDEX_KIND, decode_codes, group_files
from liquid_train.data.shards import ShardSet

COUNTS = [600, 0, 300]  # samples of the shards: chunks of 256, 256, 88; none; 256, 44
CODEBOOK = 512


def codes_of(n):
    return (np.arange(64, dtype=np.uint16).reshape(8, 8) * 7 + n) % CODEBOOK


def make_set(path, counts=COUNTS):
    (path / PARTIAL).mkdir(parents=True)
    shards, rows, n = [], [], 0
    for number, count in enumerate(counts):
        writer = ShardWriter(path, number)
        for _ in range(count):
            writer.add(
                f"train/img-{n:05d}",
                {"width": 64, "height": 64, "n": n},
                None if n % 10 == 9 else f"image {n} ü",
                codes_of(n),
            )
            n += 1
        shards.append(writer.finish())
        rows.append(writer.rows)
    (path / PARTIAL).rmdir()
    index = {
        "__kind__": INDEX_KIND,
        "wids_version": 1,
        "name": "test",
        "shardlist": shards,
        "vq_fingerprint": "f" * 64,
        "codebook_size": CODEBOOK,
        **write_samples(path, rows, n),
    }
    (path / "index.json").write_text(json.dumps(index))
    return ShardSet(path)


def as_older_version(path):
    """Without samples.npy: index.json has the byte offset of every 256th sample of a tar."""
    index, rows, start = json.loads((path / "index.json").read_text()), np.load(path / "samples.npy"), 0
    for entry in index["shardlist"]:
        count = entry["nsamples"]
        firsts = range(0, count, 256)
        entry["chunks"] = [[n, min(256, count - n), int(rows["offset"][start + n])] for n in firsts]
        start += count
    del index["samples"], index["grids"]
    (path / "index.json").write_text(json.dumps(index))
    (path / "samples.npy").unlink()


def read(shards, first, count):
    """The samples of a range, without the damaged ones."""
    found = shards.read(first, count)
    return [found[i] for i in range(len(found)) if found[i] is not None]


@pytest.fixture(params=["with samples.npy", "of an older version"])
def path(request, tmp_path):
    make_set(tmp_path / "set")
    if "older" in request.param:
        as_older_version(tmp_path / "set")
    return tmp_path / "set"


def member_offset(tar, name):
    """(offset of the header, offset of the data) of a member."""
    with tarfile.open(tar) as file:
        member = file.getmember(name)
        return member.offset, member.offset_data


def overwrite(file, offset, content):
    with open(file, "r+b") as f:
        f.seek(offset)
        f.write(content)


def test_every_sample_in_order(path):
    shards = ShardSet(path)
    samples = list(shards)
    assert len(shards) == shards.num_samples == len(samples) == 900
    for n, sample in enumerate(samples):
        assert sample["key"] == f"train/img-{n:05d}" and sample["info"]["n"] == n
        assert sample["codes"].dtype == np.uint16 and np.array_equal(sample["codes"], codes_of(n))
        assert sample.get("text") == (None if n % 10 == 9 else f"image {n} ü")
    assert not shards.bad


def test_ranges_and_random_access_equal_the_sequential_read(path):
    shards = ShardSet(path)
    for first, count in ((0, 900), (0, 1), (250, 12), (500, 300), (599, 2), (600, 300), (899, 1)):
        assert [s["info"]["n"] for s in read(shards, first, count)] == list(range(first, first + count))
    for n in random.Random(0).sample(range(900), 60) + [0, 255, 256, 599, 600, 899]:
        assert shards.sample(n)["info"]["n"] == n
    for n in (-1, 900):
        with pytest.raises(IndexError):
            shards.sample(n)
    assert [shards.shard_of(n).url for n in (0, 599, 600)] == ["shard-00000.tar", "shard-00000.tar", "shard-00002.tar"]


def test_a_range_is_one_read_of_each_tar_and_nothing_is_parsed_before_it_is_asked_for(tmp_path, monkeypatch):
    shards, reads, parsed = make_set(tmp_path / "set"), [], []
    folder_read, decode = shards._folder.read, shard_module.decode_sample
    shards._folder.read = lambda name, *span: reads.append((name, *span)) or folder_read(name, *span)
    monkeypatch.setattr(shard_module, "decode_sample", lambda key, *rest: parsed.append(key) or decode(key, *rest))
    found = shards.read(590, 20)
    rows = np.load(tmp_path / "set" / "samples.npy")
    assert [name for name, *_ in reads] == ["samples.npy", "shard-00000.tar", "shard-00002.tar"] and not parsed
    assert reads[1][1:] == (rows["offset"][590], shards.shards[0].bytes)
    assert reads[2][1:] == (0, rows["offset"][610])
    for _ in range(2):
        assert found[3]["info"]["n"] == 593
    assert parsed == ["train/img-00593"]


def test_samples_npy_says_what_there_is(tmp_path):
    make_set(tmp_path / "set")
    rows = np.load(tmp_path / "set" / "samples.npy", mmap_mode="r", allow_pickle=False)
    assert rows.shape == (900,) and set(zip(rows["rows"].tolist(), rows["columns"].tolist(), strict=True)) == {(8, 8)}
    assert rows["captions"].tolist() == [int(n % 10 != 9) for n in range(900)]
    assert rows["characters"][3] == len("image 3 ü") and rows["key"][3] == key_hash("train/img-00003")
    assert rows["offset"][600] == 0 and (np.diff(rows["offset"][:600].astype(int)) > 0).all()
    assert json.loads((tmp_path / "set" / "index.json").read_text())["grids"] == [[8, 8, 900]]


@pytest.mark.parametrize("damage", ["gone", "cut", "offsets"])
def test_samples_npy_that_is_damaged(tmp_path, damage):
    make_set(tmp_path / "set")
    file = tmp_path / "set" / "samples.npy"
    content = file.read_bytes()
    if damage == "gone":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(content[:-100])
    else:  # as many bytes, other offsets: what the tar has there is not taken for another sample
        rows = np.load(file)
        rows["offset"][300:302] = rows["offset"][[100, 50]]
        file.write_bytes(content[: -rows.nbytes] + rows.tobytes())
    shards = ShardSet(tmp_path / "set")
    if damage == "offsets":
        assert (
            shards.sample(299) is None and shards.sample(700)["info"]["n"] == 700 and shards.bad == {"damaged tar": 256}
        )
        return
    for use in (shards.check_files, lambda: shards.sample(880)):
        with pytest.raises(ValueError, match=r"samples.npy: .*`liquid data index .*/set`"):
            use()
    (tmp_path / "set" / "samples.npy").unlink(missing_ok=True)
    build_index(tmp_path / "set")
    again = ShardSet(tmp_path / "set")
    assert file.read_bytes() == content and again.index == shards.index and again.sample(880)["info"]["n"] == 880


def test_an_index_of_fifty_thousand_shards_costs_little(tmp_path):
    """Measured by what Python holds at most while it is loaded: neither time nor the machine decides."""
    entry = {
        "nsamples": 1024,
        "bytes": 5_000_000,
        "sha256": "0" * 64,
        "dropped": {},
        "totals": {"images": 1024, "samples": 1024},
    }
    make_set(tmp_path / "set")
    index = json.loads((tmp_path / "set" / "index.json").read_text())
    index["shardlist"] = [{"url": f"shard-{n:05d}.tar", **entry} for n in range(50_000)]
    index["samples"]["bytes"] = 128 + 50_000 * 1024 * 32
    (tmp_path / "set" / "index.json").write_text(json.dumps(index))
    tracemalloc.start()
    try:
        shards = ShardSet(tmp_path / "set")
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(shards) == 51_200_000 and held < 25 * 2**20 and peak < 50 * 2**20


def test_stock_webdataset_reads_the_tars(path):
    webdataset = pytest.importorskip("webdataset")
    urls = [str(path / s.url) for s in ShardSet(path).shards if s.nsamples]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert [s["__key__"] for s in samples] == [f"train/img-{n:05d}" for n in range(900)]
    assert all(
        np.array_equal(s["codes.npy"], codes_of(n)) and s["codes.npy"].dtype == np.uint16 for n, s in enumerate(samples)
    )
    assert (
        samples[3]["txt"] == "image 3 ü"
        and samples[3]["json"] == {"width": 64, "height": 64, "n": 3}
        and "txt" not in samples[9]
    )


def test_digest_follows_the_content_and_sets_pickle(path, tmp_path):
    shards = ShardSet(path)
    shards.sample(5)
    copy = pickle.loads(pickle.dumps(shards))
    assert copy.digest == shards.digest and copy.sample(700)["info"]["n"] == 700
    assert make_set(tmp_path / "same").digest == shards.digest
    assert make_set(tmp_path / "other", [600, 0, 299]).digest != shards.digest


@pytest.mark.parametrize(
    ("name", "where", "content", "reason"),
    [
        ("train/img-00300.codes.npy", "data", b"\x00" * 40, "codes do not parse"),
        ("train/img-00300.codes.npy", "codes", b"\xff\xff", "code beyond the codebook"),
        ("train/img-00300.codes.npy", "header", b"\xff" * 512, "no codes"),
        ("train/img-00300.json", "data", b"}", "json does not parse"),
        ("train/img-00300.json", "header", b"\xff" * 512, "no json"),
        ("train/img-00300.txt", "data", b"\xff", "text is not UTF-8"),
    ],
)
def test_damaged_sample_is_left_out_and_counted_once(path, caplog, name, where, content, reason):
    tar = path / "shard-00000.tar"
    header, data = member_offset(tar, name)
    overwrite(tar, {"header": header, "data": data, "codes": data + 128}[where], content)
    shards = ShardSet(path)
    shards.check_files()  # the size is right
    for _ in range(2):
        assert [s["info"]["n"] for s in read(shards, 256, 256)] == [n for n in range(256, 512) if n != 300]
    assert shards.sample(300) is None and shards.sample(301)["info"]["n"] == 301
    assert shards.bad == {reason: 1}
    assert [r.getMessage() for r in caplog.records if "img-00300" in r.getMessage() and reason in r.getMessage()]


def test_sample_without_a_trace_counts(path):
    tar = path / "shard-00000.tar"
    start, end = (member_offset(tar, f"train/img-{n:05d}.codes.npy")[0] for n in (300, 301))
    overwrite(tar, start, b"\xff" * (end - start))
    shards = ShardSet(path)
    assert [s["info"]["n"] for s in read(shards, 290, 20)] == [n for n in range(290, 310) if n != 300]
    assert shards.sample(300) is None and shards.bad == {"damaged tar": 1}


def test_truncated_and_missing_tar(path):
    tar = path / "shard-00000.tar"
    with open(tar, "r+b") as f:
        f.truncate(member_offset(tar, "train/img-00300.json")[0] + 100)
    shards = ShardSet(path)
    with pytest.raises(ValueError, match="shard-00000.tar: .* bytes, index.json says"):
        shards.check_files()
    kept = [s["info"]["n"] for s in shards]
    assert kept == [*range(300), *range(600, 900)] and shards.bad.total() == 300
    tar.unlink()
    shards = ShardSet(path)
    with pytest.raises(ValueError, match="shard-00000.tar: missing"):
        shards.check_files()
    with pytest.raises(ValueError, match="shard-00000.tar: cannot be read now: No such file or directory"):
        list(shards)
    assert not shards.bad  # what was not read is not damaged


@pytest.mark.parametrize("error", [FileNotFoundError(2, "away"), OSError(116, "Stale file handle"), OSError(5, "I/O")])
def test_a_folder_that_is_away_for_a_while_costs_no_sample(path, monkeypatch, caplog, error):
    shards = ShardSet(path, retry_seconds=60)
    monkeypatch.setattr(outage, "FIRST_PAUSE", 0.001)
    left = [error] * 5

    def flaky(*arguments):
        if left:
            raise left.pop()
        return open(*arguments)

    monkeypatch.setattr("liquid_train.data.storage.open", flaky, raising=False)
    assert len(list(shards)) == 900 and not shards.bad and not left
    assert caplog.text.count("cannot be read now") == 1 and caplog.text.count("is read again") == 1


def test_what_may_not_be_read_is_not_waited_for(path, monkeypatch):
    shards = ShardSet(path, retry_seconds=60)

    def refused(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("liquid_train.data.storage.open", refused, raising=False)
    with pytest.raises(ValueError, match="cannot be read now: Permission denied"):
        shards.read(0, 256)


def test_no_damage_to_an_npy_raises_anything_but_valueerror():
    good, rng = to_npy(codes_of(1)), random.Random(0)
    for _ in range(3000):
        bad = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            bad[rng.randrange(128)] = rng.randrange(256)
        with contextlib.suppress(ValueError):
            assert decode_codes(bytes(bad[: rng.choice([len(bad), len(bad), 100, 8, 0])]), CODEBOOK).ndim == 2


def test_no_damage_to_a_tar_raises(path):
    """Headers of nonsense with a right checksum: what a stray write, or a stranger, may leave."""
    shard, rng, found = (path / "shard-00000.tar").read_bytes()[:6144], random.Random(0), 0
    for n in range(3000):
        bad = bytearray(shard)
        for _ in range(rng.randint(1, 4)):
            bad[512 * (n % 12) + rng.choice([124, 130, 156, rng.randrange(512)])] = rng.choice(
                [0, 32, 48, 49, 120, 255]
            )
        if n % 5 == 0:  # a size beyond all memory
            bad[124:136] = b"\x80" + rng.randbytes(11)
        header = bytes(bad[:148]) + b" " * 8 + bytes(bad[156:512])
        bad[148:156] = b"%06o\0 " % sum(header)
        found += len(group_files(bytes(bad)))
    assert found


def test_links_in_a_tar_are_left_out(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            link = tarfile.TarInfo("a.txt")
            link.type, link.linkname = kind, "nowhere"
            tar.addfile(link)
        tar.addfile(tarfile.TarInfo("b.txt"))
    assert group_files((tmp_path / "a.tar").read_bytes()) == {"b": {"txt": b""}}


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<u2", ">u2", "<u4", "u1"])
def test_every_layout_of_codes(version, order, dtype):
    codes, buffer = np.asarray(np.arange(24).reshape(4, 6), dtype, order=order), io.BytesIO()
    np.lib.format.write_array(buffer, codes, version)
    decoded = decode_codes(buffer.getvalue(), CODEBOOK)
    assert np.array_equal(decoded, codes) and decoded.dtype == codes.dtype and decoded.flags.writeable
    for content in (buffer.getvalue()[:-1], buffer.getvalue()[:100]):
        with pytest.raises(ValueError, match="codes do not parse"):
            decode_codes(content, CODEBOOK)


@pytest.mark.parametrize(
    "codes",
    [np.zeros((2, 2), np.int16), np.zeros(4, np.uint16), np.zeros((0, 4), np.uint16), np.zeros((1, 2, 2), np.uint16)],
)
def test_what_is_no_grid_of_codes(codes):
    with pytest.raises(ValueError, match="not a grid of unsigned integers"):
        decode_codes(to_npy(codes))


def test_pickled_arrays_are_never_loaded():
    buffer = io.BytesIO()
    np.save(buffer, np.array([[{}]], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="codes do not parse"):
        decode_codes(buffer.getvalue())


def test_noise_is_no_tar():
    assert group_files(random.Random(0).randbytes(5000)) == {} and group_files(b"") == {}


def test_refusals(path, tmp_path):
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        ShardSet(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no index.json there"):
        ShardSet(tmp_path / "empty")
    for content in (
        "{",
        "[]",
        "{}",
        '{"__kind__": "x", "shardlist": []}',
        json.dumps({"__kind__": INDEX_KIND, "shardlist": [{"url": "a.tar", "nsamples": 1}]}),
    ):
        (tmp_path / "empty" / "index.json").write_text(content)
        with pytest.raises(ValueError, match="index.json: not a"):
            ShardSet(tmp_path / "empty")
    ShardSet(path, vq_fingerprint="f" * 64, codebook_size=CODEBOOK)
    with pytest.raises(
        ValueError, match="another VQ: fingerprint ffffffffffffffff here, eeeeeeeeeeeeeeee asked for; .*vq.config"
    ):
        ShardSet(path, vq_fingerprint="e" * 64)
    with pytest.raises(ValueError, match="codebook of 512, 8192 asked for"):
        ShardSet(path, codebook_size=8192)


def test_the_usual_grid_is_known_without_reading_a_sample(tmp_path, monkeypatch):
    """A set of ten million texts would take every rank half an hour to read for a grid that is not there."""
    shards = make_set(tmp_path / "new")
    older = tmp_path / "older"
    make_set(older)
    as_older_version(older)
    assert ShardSet(older).usual_grid() == (8, 8)  # of its first image
    text = ShardSet(older)
    text.index["totals"] = {"images": 0}
    monkeypatch.setattr(ShardSet, "read", None)
    assert shards.usual_grid() == (8, 8) and text.usual_grid() is None
    shards.index["grids"] = [[4, 4, 3], [8, 16, 7], [16, 8, 2]]
    assert shards.usual_grid() == (8, 16)
    shards.index["grids"] = []
    assert shards.usual_grid() is None
