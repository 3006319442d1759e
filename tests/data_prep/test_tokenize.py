"""`liquid tokenize` from its config to the finished set: content, restarts, refusals. The VQ is a tiny random one."""

import json
import subprocess
import sys
import textwrap
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from data_prep import tokenize
from data_prep.encode.documents import cut_paragraphs
from data_prep.sources import easy_vqa, python_docs
from data_prep.sources._augmentation import read_varied, shift_room
from data_prep.sources.easy_vqa import read_answers
from liquid_train.config.compose import load
from liquid_train.data.shards import ShardSet
from liquid_train.files import sha256_of
from liquid_train.image_tokenizer.kinds.taming.network import TamingVQGAN
from liquid_train.image_tokenizer.preprocess import read_rgb
from tests.tiny_vq import CODEBOOK, make_vq

ROWS = 23


@pytest.fixture(scope="module")
def vq(tmp_path_factory):
    return make_vq(tmp_path_factory.mktemp("vq") / "a")


def draw(path, number):
    """A red rectangle on a light background whose place depends on the number."""
    pixels = np.full((64, 64, 3), 240, np.uint8)
    top, left = 5 + number % 11, 3 + number % 17
    pixels[top : top + 20, left : left + 30] = (200, 5 * number, 0)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def images(tmp_path, monkeypatch):
    """ROWS generated images in place of easy-VQA's; every fifth has no caption."""
    pytest.importorskip("easy_vqa")
    folder = tmp_path / "pictures"
    folder.mkdir()
    made = []
    for number in range(ROWS):
        draw(folder / f"{number}.png", number)
        shape = [("what shape is present?", "rectangle")]
        made.append(
            read_answers(
                number,
                folder / f"{number}.png",
                shape if number % 5 == 4 else [*shape, ("what color is the shape?", "red")],
            )
        )
    monkeypatch.setattr(easy_vqa, "load_split", lambda split: made)
    return made


def run(output, vq, *overrides):
    tokenize.run(
        load(
            "tokenize",
            [
                "tokenize.source=easy_vqa",
                f"tokenize.output={output}",
                "tokenize.progress=false",
                "tokenize.workers=0",
                "tokenize.shard_size=8",
                *vq,
                *overrides,
            ],
        )
    )


def content(folder):
    return {p.relative_to(folder).as_posix(): sha256_of(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_set_holds_what_the_encoder_says(tmp_path, vq, images, capsys):
    run(tmp_path / "set", vq, "tokenize.batch_size=1")
    tars = [f"shard-0000{n}.tar" for n in range(3)]
    assert sorted(content(tmp_path / "set")) == ["index.json", "samples.npy", *tars]
    shards = ShardSet(tmp_path / "set")
    model = TamingVQGAN.from_files(vq[0].partition("=")[2], vq[1].partition("=")[2])
    assert (shards.fingerprint, shards.codebook_size, shards.index["downsampling"]) == (model.fingerprint, CODEBOOK, 8)
    samples = list(shards)
    assert [s["key"] for s in samples] == [f"train-{n:05d}" for n in range(ROWS)] and [
        s.nsamples for s in shards.shards
    ] == [8, 8, 7]
    for sample, image in zip(samples, images, strict=True):
        pixels = torch.from_numpy(np.array(Image.open(image.path))).permute(2, 0, 1)[None].float() / 127.5 - 1
        assert sample["codes"].dtype == np.uint16 and sample["codes"].shape == (8, 8)
        assert np.array_equal(sample["codes"], model.encode(pixels)[0].numpy())
        info = sample["info"]
        assert (info["width"], info["height"], info["source"]) == (64, 64, "easy_vqa")
        assert [(q["question"], q["answers"]) for q in info["questions"]] == [(q, [a]) for q, a in image.questions]
        assert sample.get("text") == image.caption
        assert [(c["text"], c["weight"]) for c in info.get("captions", [])] == image.captions
    index, codes = shards.index, np.concatenate([s["codes"].ravel() for s in samples])
    assert index["no_caption"] == 4 and index["dropped"] == {} and index["codes"]["used"] == len(np.unique(codes)) > 5
    share = np.bincount(codes)[np.unique(codes)] / len(codes)
    assert index["codes"]["perplexity"] == pytest.approx(np.exp(-(share * np.log(share)).sum()), abs=1e-2)
    expected = {
        "samples": ROWS,
        "images": ROWS,
        "image_codes": ROWS * 64,
        "captions": 19,
        "questions": 42,
        "text_characters": 19 * len("a red rectangle"),
    }
    assert index["totals"] == expected
    assert "23 samples in 3 shards" in capsys.readouterr().out


def test_any_number_of_workers_gives_the_same_bytes(tmp_path, vq, images):
    images[5].path.write_bytes(b"no image")
    overrides = ("tokenize.copies=2", "tokenize.batch_size=3", "tokenize.max_bad=0.5")
    run(tmp_path / "none", vq, *overrides)
    run(tmp_path / "two", vq, *overrides, "tokenize.workers=2")
    assert content(tmp_path / "none") == content(tmp_path / "two")


def test_varied_copies(tmp_path, vq, images):
    run(tmp_path / "set", vq, "tokenize.copies=3")
    samples = {s["key"]: s for s in ShardSet(tmp_path / "set")}
    assert len(samples) == 3 * ROWS
    assert {"train-00004", "train-00004-c1", "train-00004-c2"} <= set(samples)
    copy = samples["train-00007-c2"]
    assert copy["text"] == samples["train-00007"]["text"] == "a red rectangle"
    assert len(copy["info"]["questions"]) > len(samples["train-00007"]["info"]["questions"])  # in other words
    assert any(
        not np.array_equal(samples[f"train-{n:05d}"]["codes"], samples[f"train-{n:05d}-c1"]["codes"])
        for n in range(ROWS)
    )
    run(tmp_path / "again", vq, "tokenize.copies=3")
    run(tmp_path / "other", vq, "tokenize.copies=3", "seed=1")
    assert content(tmp_path / "again") == content(tmp_path / "set") != content(tmp_path / "other")


def test_a_copy_is_the_image_mirrored_and_shifted_with_its_shape_inside(images):
    seen = Counter()
    for image in images:
        original = read_rgb(image.path)
        for copy in range(1, 6):
            varied = read_varied(image.path, 0, f"train-{image.number:05d}", copy)
            assert np.array_equal(varied, read_varied(image.path, 0, f"train-{image.number:05d}", copy))
            # the whole shape is there
            assert Counter(map(tuple, varied.reshape(-1, 3))) == Counter(map(tuple, original.reshape(-1, 3)))
            moved = np.argwhere((varied != 240).any(2)).min(0) - np.argwhere((original != 240).any(2)).min(0)
            seen[abs(int(moved[0])) <= 8, moved[0] != 0] += 1
    assert seen[True, True] > 50 and not seen[False, True]


def test_a_copy_is_mirrored_by_a_coin(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)  # the corners differ: no shift
    Image.fromarray(noise).save(tmp_path / "noise.png")
    mirrored = [
        np.array_equal(read_varied(tmp_path / "noise.png", 0, f"train-{n:05d}", 1), noise[:, ::-1]) for n in range(40)
    ]
    straight = [np.array_equal(read_varied(tmp_path / "noise.png", 0, f"train-{n:05d}", 1), noise) for n in range(40)]
    assert 8 < sum(mirrored) < 32 and sum(mirrored) + sum(straight) == 40


def test_content_that_touches_a_border_does_not_move_along_that_axis():
    pixels = np.full((64, 64, 3), 240, np.uint8)
    pixels[0:20, 10:20] = 0
    assert shift_room(pixels) == [(0, 0), (10, 44)]
    pixels[0, 0] = 0  # a corner: the background is not known
    assert shift_room(pixels) == [(0, 0), (0, 0)]


def test_a_second_call_does_nothing_and_needs_no_torch(tmp_path, vq):
    if find_spec("easy_vqa") is None:
        pytest.skip("needs the easy-vqa package")
    program = textwrap.dedent("""
        import sys
        from data_prep.tokenize import run
        from liquid_train.config.compose import load
        run(load("tokenize", sys.argv[1:]))
        print("torch" in sys.modules, "transformers" in sys.modules)
    """)
    overrides = [
        "tokenize.source=easy_vqa",
        "tokenize.split=test",
        f"tokenize.output={tmp_path / 'set'}",
        "tokenize.workers=0",
        "tokenize.progress=false",
        *vq,
    ]
    tokenize.run(load("tokenize", overrides))
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "set").iterdir()}
    result = subprocess.run(
        [sys.executable, "-c", program, *overrides],
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
        check=True,
    )
    assert result.stdout.splitlines() == [
        f"{tmp_path / 'set'}: complete already, 1,000 samples of the same recipe; nothing to do",
        "False False",
    ]
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "set").iterdir()} == before


def test_killed_job_goes_on_to_the_same_bytes(tmp_path, vq, images):
    run(tmp_path / "whole", vq)
    program = textwrap.dedent("""
        import os, signal, sys
        from pathlib import Path
        from data_prep import tokenize
        from data_prep.sources import easy_vqa
        from liquid_train.config.compose import load
        folder, at = Path(sys.argv[1]), int(sys.argv[2])
        easy_vqa.load_split = lambda split: [
            easy_vqa.read_answers(n, folder / f"{n}.png", [("what shape is present?", "rectangle")]
                              + [("what color is the shape?", "red")] * (n % 5 != 4))
            for n in range(23)]
        moves = 0
        replace = os.replace
        def killed(aside, final):
            global moves
            moves += 1
            if moves == at:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(aside, final)
        os.replace = killed
        tokenize.run(load("tokenize", sys.argv[3:]))
    """)
    # moves into place: 1 recipe, 2 shard 0, 3 its entry, 4 shard 1, 5 its entry, 6 shard 2, 7 its entry, 8 index
    for at in (5, 8):
        output = tmp_path / f"killed-{at}"
        overrides = [
            "tokenize.source=easy_vqa",
            f"tokenize.output={output}",
            "tokenize.progress=false",
            "tokenize.workers=0",
            "tokenize.shard_size=8",
            *vq,
        ]
        killed = subprocess.run(
            [sys.executable, "-c", program, str(images[0].path.parent), str(at), *overrides],
            cwd=Path(__file__).resolve().parents[2],
        )
        assert killed.returncode == -9 and not (output / "index.json").exists()
        with pytest.raises(ValueError, match="no index.json"):
            ShardSet(output)
        kept = output / "shard-00000.tar"
        inode = kept.stat().st_ino
        run(output, vq)
        assert content(output) == content(tmp_path / "whole") and kept.stat().st_ino == inode


def test_damaged_or_missing_tars_are_made_again(tmp_path, vq, images):
    run(tmp_path / "set", vq)
    before, inode = content(tmp_path / "set"), (tmp_path / "set" / "shard-00001.tar").stat().st_ino
    with open(tmp_path / "set" / "shard-00000.tar", "r+b") as f:
        f.seek(3000)
        f.write(b"\x55")
    (tmp_path / "set" / "shard-00002.tar").unlink()
    run(tmp_path / "set", vq)
    assert content(tmp_path / "set") == before and (tmp_path / "set" / "shard-00001.tar").stat().st_ino == inode


def test_another_recipe_is_refused_unless_it_may_overwrite(tmp_path, vq, images):
    run(tmp_path / "set", vq)
    before = content(tmp_path / "set")
    other_vq = make_vq(tmp_path / "other", seed=1)
    for overrides, message in [
        ([*vq, "tokenize.copies=2"], r"source.copies: 1 there, 2 asked for"),
        ([*vq, "tokenize.shard_size=16"], r"shard_size: 8 there, 16 asked for"),
        (other_vq, r"vq.checkpoint: \w{12}... there, \w{12}... asked for"),
        ([*vq, "tokenize.source=python_docs"], r"source.name: easy_vqa there, python_docs asked for"),
    ]:
        with pytest.raises(
            ValueError,
            match=rf"holds another set: .*{message}.*; give another tokenize.output, or tokenize.overwrite=true",
        ):
            run(tmp_path / "set", overrides)
    assert content(tmp_path / "set") == before
    run(tmp_path / "set", other_vq, "tokenize.overwrite=true", "tokenize.shard_size=16")
    run(tmp_path / "fresh", other_vq, "tokenize.shard_size=16")
    assert content(tmp_path / "set") == content(tmp_path / "fresh") != before
    with pytest.raises(ValueError, match="codes of another VQ"):
        ShardSet(
            tmp_path / "set",
            vq_fingerprint=json.loads((tmp_path / "fresh" / "index.json").read_text())["vq_fingerprint"][::-1],
        )


def test_a_checkpoint_of_the_same_vq_is_the_same_recipe(tmp_path, vq, images, capsys):
    run(tmp_path / "set", vq)
    before = content(tmp_path / "set")
    from safetensors.torch import load_file

    torch.save({"state_dict": load_file(vq[1].partition("=")[2])}, tmp_path / "model.ckpt")
    run(tmp_path / "set", [vq[0], f"vq.checkpoint={tmp_path / 'model.ckpt'}"])
    assert "nothing to do" in capsys.readouterr().out and content(tmp_path / "set") == before


def test_shards_of_unknown_origin_are_not_replaced(tmp_path, vq, images):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "shard-00000.tar").write_bytes(b"somebody's")
    with pytest.raises(ValueError, match="its shards have no recipe"):
        run(tmp_path / "set", vq)
    assert (tmp_path / "set" / "shard-00000.tar").read_bytes() == b"somebody's"


def test_unusable_images_are_counted_with_their_keys(tmp_path, vq, images, caplog):
    images[2].path.write_bytes(b"no image")
    images[3].path.write_bytes(images[4].path.read_bytes()[:100])
    images[9].path.unlink()
    Image.new("RGB", (60, 64)).save(images[10].path)
    Image.new("L", (128, 64), 7).save(images[11].path)  # another size and mode: fine
    contradicting = [("what color is the shape?", "red"), ("is there a red shape?", "no")]
    images[12] = read_answers(12, images[12].path, contradicting)
    run(tmp_path / "set", vq, "tokenize.max_bad=0.3", "tokenize.batch_size=4")
    shards = ShardSet(tmp_path / "set")
    reasons = {
        "not an image": 1,
        "broken image": 1,
        "missing image": 1,
        "sides not multiples of 8": 1,
        "contradicting answers": 1,
    }
    assert shards.index["dropped"] == reasons and len(shards) == ROWS - 5
    samples = {s["key"]: s for s in shards}
    model = TamingVQGAN.from_files(vq[0].partition("=")[2], vq[1].partition("=")[2])
    pixels = (
        torch.from_numpy(np.stack([read_rgb(images[n].path) for n in (13, 14, 15)])).permute(0, 3, 1, 2).float() / 127.5
        - 1
    )
    # the others of the batch
    assert np.array_equal(
        np.stack([samples[f"train-000{n}"]["codes"] for n in (13, 14, 15)]), model.encode(pixels).numpy()
    )
    assert set(samples) == {f"train-{n:05d}" for n in range(ROWS) if n not in (2, 3, 9, 10, 12)}
    assert samples["train-00011"]["codes"].shape == (8, 16) and samples["train-00011"]["info"]["width"] == 128
    assert {r.getMessage() for r in caplog.records} >= {
        "train-00002: left out: not an image",
        "train-00012: left out: contradicting answers",
    }


def test_too_many_unusable_images_end_the_job(tmp_path, vq, images):
    for image in images[9:13]:
        image.path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"tokenize.max_bad=0.1: 4 of 23 rows cannot be used \(not an image: 4\); fix"):
        run(tmp_path / "set", vq, "tokenize.max_bad=0.1")
    assert not (tmp_path / "set" / "index.json").exists() and [p.name for p in (tmp_path / "set").glob("*.tar")] == [
        "shard-00000.tar"
    ]
    assert not list((tmp_path / "set").rglob(".partial/*.tar"))
    run(tmp_path / "set", vq, "tokenize.max_bad=0.2")
    assert len(ShardSet(tmp_path / "set")) == ROWS - 4


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["tokenize.source=imagenet"],
            "tokenize.source=imagenet: no such source; one of chat, easy_vqa, folder, .*, text, vqa, webdataset",
        ),
        (["tokenize.split=valid"], "tokenize.split=valid: easy_vqa has train and test"),
        (["tokenize.input=/somewhere"], "tokenize.input=/somewhere: easy_vqa comes with a package"),
        (
            ["tokenize.source=python_docs", "tokenize.copies=2"],
            "tokenize.copies=2: tokenize.source=python_docs does not use it",
        ),
        (["tokenize.device=gpu"], "tokenize.device=gpu: one of auto, cpu, cuda"),
        (["tokenize.device=cuda:9"], "tokenize.device=cuda:9: this machine has"),
        (["vq.config=nowhere.yaml"], "vq.config=nowhere.yaml: no such file"),
        (["vq.checkpoint=nowhere.ckpt"], "vq.checkpoint=nowhere.ckpt: no such file"),
        (["tokenize.shard_size=0"], "tokenize.shard_size=0: must be 1 or more"),
        (["tokenize.shardsize=5"], "tokenize.shardsize"),
    ],
)
def test_what_cannot_work_is_refused_and_leaves_nothing(tmp_path, vq, images, overrides, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "set", vq, *overrides)
    assert not (tmp_path / "set").exists()


def test_a_vq_that_does_not_fit_and_an_output_that_is_a_file(tmp_path, vq, images):
    other = yaml.safe_load(Path(vq[0].partition("=")[2]).read_text())
    other["model"]["params"]["n_embed"] = 32
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(other))
    with pytest.raises(ValueError, match="does not fit"):
        run(tmp_path / "set", vq, f"vq.config={tmp_path / 'small.yaml'}")
    assert not (tmp_path / "set").exists()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="tokenize.output=.*file: cannot be written to"):
        run(tmp_path / "file", vq)
    assert (tmp_path / "file").read_text() == "mine"


def test_two_jobs_do_not_make_the_same_shards(tmp_path, vq, images):
    program = textwrap.dedent("""
        import sys
        from pathlib import Path
        from data_prep.shard_set.folder import SetFolder
        folder = SetFolder(Path(sys.argv[1]))
        with folder.opened():
            folder.claim(range(1, 2))
            print("claimed", flush=True)
            sys.stdin.read()
    """)
    other = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "set")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None and other.stdin is not None and other.stdout.readline() == "claimed\n"
    with pytest.raises(ValueError, match="another process writes to it"):
        run(tmp_path / "set", vq)
    other.stdin.close()
    other.wait()
    run(tmp_path / "set", vq)
    assert len(ShardSet(tmp_path / "set")) == ROWS


def test_test_images_are_not_in_the_train_set():
    pytest.importorskip("easy_vqa")
    splits = {split: {read_rgb(p.path).tobytes() for p in easy_vqa.load_split(split)} for split in ("train", "test")}
    assert len(splits["train"]) == 4000 and len(splits["test"]) == 1000 and not splits["train"] & splits["test"]


def paragraphs(texts):
    return {" ".join(p.split()) for text in texts for p in text.split("\n\n") if len(" ".join(p.split())) >= 40}


def test_text_sets(tmp_path):
    sets = {}
    for split in ("train", "test"):
        overrides = [
            "tokenize.source=python_docs",
            f"tokenize.split={split}",
            f"tokenize.output={tmp_path / split}",
            "tokenize.progress=false",
        ]
        tokenize.run(load("tokenize", [*overrides, "vq.config=not-needed.yaml", "tokenize.shard_size=100"]))
        sets[split] = ShardSet(tmp_path / split, vq_fingerprint="f" * 64)  # texts fit every VQ
    texts = {split: [s["text"] for s in shards] for split, shards in sets.items()}
    assert all(0 < len(text) <= 1500 for split in texts for text in texts[split])
    assert all("codes" not in s and s["info"].keys() == {"source", "topic", "part", "text_hash"} for s in sets["train"])
    topics = {split: {s["info"]["topic"] for s in shards} for split, shards in sets.items()}
    assert not topics["train"] & topics["test"] and topics["train"] | topics["test"] == set(python_docs.load_topics())
    assert not paragraphs(texts["train"]) & paragraphs(texts["test"])  # topics repeat each other: not across the splits
    whole = "".join(
        "".join(text.split()) for name, text in python_docs.load_topics().items() if python_docs.is_test_topic(name)
    )
    assert len("".join("".join(texts["test"]).split())) > 0.99 * len(whole)  # what both have stays in the test set
    written = {line for text in texts["train"] + texts["test"] for line in text.split("\n")}
    # nothing is lost
    assert written >= {line for text in python_docs.load_topics().values() for line in text.split("\n") if line.strip()}
    assert sets["test"].index["totals"]["text_characters"] == sum(map(len, texts["test"])) > 10_000
    assert (
        sets["train"].index["totals"]["text_characters"] > 300_000
        and sets["train"].index["omitted"]["repeated paragraph"] > 100
    )


def test_cutting_loses_nothing():
    text = "\n\n".join(["head", "a" * 700, "b" * 790, "\n".join(["line " * 20] * 40), "c" * 2000, "tail"])
    pieces = list(cut_paragraphs(text, 1500))
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert [len(p) for p in pieces if len(p) > 1500] == [2000] and pieces[0].startswith("head\n\naaa")
