"""`liquid generate`: what lands in the output folder, what is refused, and when nothing is to be done."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from liquid_train.generate import manifest
from liquid_train.generate.images import contact_sheet, decode, encode, load_image
from liquid_train.generate.job import run
from liquid_train.generate.request import read_prompts, read_request
from liquid_train.generate.settings import GenerateJob
from liquid_train.image_tokenizer.settings import VQSettings
from tests.tiny_model import save, vq

AUTO: dict[str, Any] = {"vq": VQSettings("auto", "auto"), "device": "cpu"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("model"), grid=(2, 3))


@pytest.fixture
def prompts(tmp_path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("a red circle\n\n  a dog's bowl, blue  \n")
    return path


def images(config: GenerateJob, **settings) -> GenerateJob:
    return GenerateJob(**{**config.__dict__, **settings})


@pytest.fixture
def job(folder, prompts, tmp_path) -> GenerateJob:
    return GenerateJob(checkpoint=str(folder), prompts=str(prompts), output=str(tmp_path / "out"), seed=7, **AUTO)


def content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_images_and_index(job, tmp_path):
    run(job)
    out = tmp_path / "out"
    rows = [json.loads(line) for line in (out / "index.jsonl").read_text().splitlines()]
    assert rows == [
        {"file": "00000.png", "prompt": "a red circle", "seed": 7},
        {"file": "00001.png", "prompt": "a dog's bowl, blue", "seed": 8},
    ]
    for row in rows:
        with Image.open(out / row["file"]) as image:
            assert image.size == (24, 16) and image.mode == "RGB"  # 3 columns and 2 rows of codes, 8 pixels each
    assert {p.name for p in tmp_path.iterdir()} == {"out", "prompts.txt"}  # nothing is left aside


def test_an_image_is_the_same_in_another_batch_and_under_its_seed(job, tmp_path):
    run(images(job, batch_size=1))
    alone = images(job, prompts=None, prompt="a dog's bowl, blue", seed=8, output=str(tmp_path / "alone"))
    run(alone)
    assert (tmp_path / "alone" / "00000.png").read_bytes() == (tmp_path / "out" / "00001.png").read_bytes()


def test_the_same_call_again_does_nothing_and_needs_no_torch(job, tmp_path, capsys):
    run(job)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()}
    code = f"""
import sys
from liquid_train.generate.settings import GenerateJob
from liquid_train.image_tokenizer.settings import VQSettings
from liquid_train.generate.job import run
run(GenerateJob(checkpoint={job.checkpoint!r}, prompts={job.prompts!r}, output={job.output!r}, seed=7, batch_size=5,
                vq=VQSettings("auto", "auto")))
assert not {{"torch", "transformers"}} & set(sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False
    )
    assert done.returncode == 0 and "nothing to do" in done.stdout, done.stderr
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize("damage", ["image", "index", "seed", "manifest"])
def test_a_changed_file_or_setting_is_made_again(job, tmp_path, damage):
    run(job)
    expected = content(tmp_path / "out")
    if damage == "image":
        (tmp_path / "out" / "00001.png").write_bytes(b"not an image")
    elif damage == "index":
        (tmp_path / "out" / "index.jsonl").unlink()
    elif damage == "manifest":  # of another program, or half of one
        manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
        (tmp_path / "out" / "manifest.json").write_text(json.dumps({"inputs": manifest["inputs"]}))
    run(images(job, seed=9 if damage == "seed" else 7))
    assert (content(tmp_path / "out") == expected) == (damage != "seed")


def test_fewer_images_take_the_old_ones_away_and_leave_other_files(job, tmp_path):
    run(job)
    (tmp_path / "out" / "notes.txt").write_text("mine")
    run(images(job, prompts=None, prompt="x"))
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"00000.png", "index.jsonl", "manifest.json", "notes.txt"}


def test_an_interrupted_run_leaves_the_old_results(job, tmp_path, monkeypatch):
    run(job)
    expected = content(tmp_path / "out")
    monkeypatch.setattr("liquid_train.generate.job.write_lines", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(images(job, seed=100))
    assert content(tmp_path / "out") == expected
    assert not [p for p in tmp_path.iterdir() if "partial" in p.name]


def test_answers_keep_their_lines_and_count_broken_images(folder, tmp_path, capsys):
    Image.new("RGB", (24, 16), "red").save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"broken")
    asked = [("a.png", "what?"), (str(tmp_path / "b.png"), "why?"), ("a.png", "is it red?")]
    lines = [{"image": image, "question": question, "id": i} for i, (image, question) in enumerate(asked)]
    (tmp_path / "q.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    job = GenerateJob(
        checkpoint=str(folder),
        task="i2t",
        questions=str(tmp_path / "q.jsonl"),
        output=str(tmp_path / "out"),
        max_new_tokens=4,
        **AUTO,
    )
    run(job)
    rows = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()]
    assert [{k: v for k, v in row.items() if k not in ("answer", "error")} for row in rows] == lines
    assert (
        isinstance(rows[0]["answer"], str)
        and rows[1]["answer"] is None
        and rows[1]["error"] == "UnidentifiedImageError"
    )
    assert "2 answers" in (text := capsys.readouterr().out) and "1 UnidentifiedImageError" in text
    run(images(job, questions=None, image=str(tmp_path / "a.png"), prompt="is it red?", output=None))
    assert capsys.readouterr().out == rows[2]["answer"] + "\n"


def test_a_caption_and_a_completion_are_printed(folder, tmp_path, capsys):
    Image.new("RGB", (100, 30), "teal").save(tmp_path / "wide.png")
    run(GenerateJob(checkpoint=str(folder), task="i2t", image=str(tmp_path / "wide.png"), max_new_tokens=4, **AUTO))
    assert capsys.readouterr().out.endswith("\n")
    for _ in range(2):
        run(
            GenerateJob(
                checkpoint=str(folder),
                task="t2t",
                prompt="a red",
                max_new_tokens=6,
                output=str(tmp_path / "texts"),
                temperature=0,
                **AUTO,
            )
        )
    assert "nothing to do" in capsys.readouterr().out
    row = json.loads((tmp_path / "texts" / "completions.jsonl").read_text())
    assert row["prompt"] == "a red" and row["seed"] == 0 and row["text"]


def test_another_vq_is_refused_before_anything_is_written(tmp_path, job):
    other = save(tmp_path / "other", fingerprint="f" * 64)
    with pytest.raises(ValueError, match="ffffffffffffffff.*vq.config"):
        run(images(job, checkpoint=str(other)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompts": "no/such.txt"}, "prompts=no/such.txt: no such file"),
        ({"prompts": None}, "give either prompt"),
        ({"prompt": "a"}, "give either prompt"),
        ({"output": None}, "output has no value"),
        ({"image": "a.png"}, "image=a.png: task=t2i does not read it"),
        ({"checkpoint": "no/such"}, "checkpoint=no/such: no such folder"),
        ({"task": "i2t", "prompts": None}, "give either image=FILE"),
        ({"task": "i2t", "prompts": None, "image": "no.png"}, "image=no.png: no such file"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"device": "gpu"}, "device=gpu: one of auto, cpu, cuda"),
        ({"output": __file__}, "a file is there"),
    ],
)
def test_mistakes_are_named(job, settings, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        run(images(job, **settings))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no question"),
        ('{"image": "x.png", "question": "a"}', "1 of its images do not exist, the first is x.png"),
        ('\n{"image": "x.png"}', "line 2: not a JSON object"),
        ('{"image": 3, "question": "a"}', "line 1: .* must be text"),
        ("[1]", "line 1: not a JSON object"),
    ],
)
def test_bad_question_files_are_named(job, tmp_path, text, message):
    (tmp_path / "q.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_request(images(job, task="i2t", prompts=None, questions=str(tmp_path / "q.jsonl")))


def test_an_empty_prompt_file_is_refused(tmp_path):
    (tmp_path / "empty.txt").write_text("\n  \n")
    with pytest.raises(ValueError, match="no prompt in it"):
        read_prompts(tmp_path / "empty.txt")
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(ValueError, match="not UTF-8"):
        read_prompts(tmp_path / "latin.txt")


def test_another_checkpoint_of_the_same_name_is_another_input(tmp_path):
    model = tmp_path / "checkpoints" / "step-00000001" / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    files = manifest.model_identity(model)
    (model.parent / "COMMIT.json").write_text("{1}")
    one = manifest.model_identity(model)
    (model.parent / "COMMIT.json").write_text("{2}")
    assert files != one != manifest.model_identity(model)


def test_images_of_another_size_are_cropped_to_their_centre_and_transparency_is_white(tmp_path):
    image = np.zeros((40, 100, 3), np.uint8)
    image[:, 30:70] = (255, 0, 0)  # the middle 40 x 40 is red
    Image.fromarray(image).save(tmp_path / "wide.png")
    assert np.abs(load_image(tmp_path / "wide.png", [(20, 20)]).astype(int) - [255, 0, 0]).max() < 20
    exact = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    Image.fromarray(exact).save(tmp_path / "exact.png")
    np.testing.assert_array_equal(load_image(tmp_path / "exact.png", [(20, 20), (24, 16)]), exact)
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert load_image(tmp_path / "clear.png", [(8, 8)]).min() == 255


def test_codes_survive_the_way_through_files():
    tokenizer = vq()
    codes = np.random.default_rng(0).integers(0, tokenizer.codebook_size, (3, 2, 2))
    pixels = decode(tokenizer, codes)
    assert pixels.shape == (3, 16, 16, 3) and pixels.dtype == np.uint8
    np.testing.assert_array_equal(decode(tokenizer, codes[1:2]), pixels[1:2])
    assert encode(tokenizer, pixels).shape == codes.shape


def test_contact_sheet_places_images_in_reading_order():
    shades = [np.full((4, 6, 3), n, np.uint8) for n in range(5)]
    sheet = contact_sheet(shades, columns=3, gap=2)
    assert sheet.shape == (10, 22, 3)
    assert [int(sheet[y, x, 0]) for y in (1, 8) for x in (1, 9, 17)] == [0, 1, 2, 3, 4, 255]


def test_a_question_that_is_no_text_does_not_end_the_others(folder, tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    asked = ["what \ud83d?", "\ufeffis it\0 red?"]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps({"image": "a.png", "question": q}) + "\n" for q in asked))
    job = GenerateJob(
        checkpoint=str(folder),
        task="vqa",
        questions=str(tmp_path / "q.jsonl"),
        output=str(tmp_path / "out"),
        max_new_tokens=2,
        **AUTO,
    )
    run(job)
    rows = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()]
    assert [row["question"] for row in rows] == ["what \ufffd?", "is it red?"]
    assert all(isinstance(row["answer"], str) for row in rows)
