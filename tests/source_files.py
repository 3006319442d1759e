"""Small real files of every kind that a source reads, and runs of `liquid tokenize` over them."""

import gzip
import io
import json
import tarfile

import numpy as np
import torch
import zstandard
from PIL import Image

from data_prep import tokenize
from data_prep.sources import open_source
from liquid_train.config.compose import load
from liquid_train.data.shards import ShardSet
from liquid_train.image_tokenizer.kinds.taming.network import TamingVQGAN


def config(source, where, *overrides):
    return load("tokenize", [f"tokenize.source={source}", f"tokenize.input={where}", *overrides])


def settings_of(source, where, *overrides):
    return config(source, where, "tokenize.output=out", *overrides).tokenize


def run(folder, vq, source, where, *overrides):
    """The finished set of a source."""
    output = folder / "set"
    tokenize.run(
        config(
            source,
            where,
            f"tokenize.output={output}",
            "tokenize.progress=false",
            "tokenize.hashes=false",  # KEY.json holds what the source gives, and no more
            "tokenize.workers=0",
            "tokenize.shard_size=3",
            *vq,
            *overrides,
        )
    )
    return ShardSet(output)


def next_to(folder, name):
    """A place outside of a folder that is the input as a whole."""
    return folder.with_name(f"{folder.name}-{name}")


def dropped(shards):
    return [
        (row["row"], row["origin"], row["reason"])
        for row in map(json.loads, (shards.path / "dropped.jsonl").read_text().splitlines())
    ]


def items(settings, name, start):
    """The items of an input by a source of its own, as what can be compared."""
    return [(i.info, i.text, i.problem, i.origin, repr(i.image)) for i in open_source(settings, 0).read(name, start)]


def check_every_start(source, where, *overrides):
    """Reading from any row on is the tail of reading from the first; so it is in one open source, whatever was read
    before."""
    settings = settings_of(source, where, *overrides)
    opened = open_source(settings, 0)
    for name in opened.inputs():
        whole = items(settings, name, 0)
        assert opened.count(name) == len(whole) > 0
        for start in [*range(len(whole) + 1), 1, 0]:
            assert items(settings, name, start) == whole[start:]
            assert [i.origin for i in opened.read(name, start)] == [i[3] for i in whole[start:]]
            reading = opened.read(name, start)
            if start < len(whole):
                assert next(reading).origin == whole[start][3]  # left off here: the next goes on from it
            reading.close()


def rows_of(source, where, *overrides):
    """(rows, surveys by input, what was omitted in all) of a source, which reads the same from any row on."""
    opened = open_source(settings_of(source, where, *overrides), 0)
    surveys = {name: opened.survey(name) for name in opened.inputs()}
    rows = []
    for name, survey in surveys.items():
        found = list(opened.rows_from(name, 0))
        assert len(found) == survey.rows
        for start in {1, len(found) // 2, len(found)}:
            assert [row.origin for row in opened.rows_from(name, start)] == [row.origin for row in found[start:]]
        rows += found
    return rows, surveys, sum((survey.omitted for survey in surveys.values()), opened.omitted())


def image(number, width=64, height=64):
    pixels = np.random.default_rng(number).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST)


def content(number, kind="PNG", **size):
    buffer = io.BytesIO()
    image(number, **size).save(buffer, kind)
    return buffer.getvalue()


def draw(folder, count):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number}.png").write_bytes(content(number))


def jsonl(path, rows):
    """rows: values, or bytes for a line as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows))


def tar(path, members):
    with tarfile.open(path, "w") as file:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))


def codes_of(vq, *numbers):
    """Codes of generated images, by a run of their own for each: what a set must have."""
    model = TamingVQGAN.from_files(vq[0].partition("=")[2], vq[1].partition("=")[2])
    return [
        model.encode(torch.from_numpy(np.array(image(n))).permute(2, 0, 1)[None].float() / 127.5 - 1)[0].numpy()
        for n in numbers
    ]


def check_codes(vq, shards, numbers):
    for sample, codes in zip(shards, codes_of(vq, *numbers), strict=True):
        assert np.array_equal(sample["codes"], codes), sample["key"]


def write_texts(path, rows):
    lines = b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)
    path.write_bytes(
        gzip.compress(lines, mtime=0)
        if path.suffix == ".gz"
        else zstandard.compress(lines)
        if path.suffix == ".zst"
        else lines
    )
