"""Generated images against a folder of real ones with prompts: what is read, what is left out and named, what the
numbers are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from evals.distances import feature_cache
from evals.distances.features import open_features
from evals.distances.frechet import Gaussian, frechet_distance
from evals.distances.kernel import kernel_distance
from evals.generated import GeneratedImages
from evals.metrics.reference_quality import read_reference, reference_quality
from evals.run import run
from evals.settings import EvalJob, ReferenceConfig
from liquid_train.image_tokenizer.settings import VQSettings
from liquid_train.measurement.measurement import ModelHandle
from liquid_train.measurement.settings import FeaturesConfig
from tests.tiny_model import save, tiny, vq

COUNTS = {"animals": 5, "people": 6, "art": 1}
SIDE = 16


def image(path: Path, seed: int, size: tuple[int, int] = (20, 24)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path, quality=95)


def mjhq(folder: Path) -> Path:
    about: dict[str, Any] = {}
    for category, count in COUNTS.items():
        for n in range(count):
            about[f"{category}{n}"] = {"category": category, "prompt": f"{category}, {n}"}
            image(folder / "mjhq30k_imgs" / category / f"{category}{n}.jpg", len(about), (20 + n, 24))
    (folder / "meta_data.json").write_text(json.dumps(about))
    return folder


@pytest.fixture(scope="module")
def handle(tmp_path_factory) -> ModelHandle:
    model, vocabulary = tiny(tmp_path_factory.mktemp("model"))
    return ModelHandle(model, vocabulary, vq(), (2, 2), "")


def draw(handle: ModelHandle, prompts: list[str], seed: int) -> GeneratedImages:
    pixels = np.stack(
        [
            np.random.default_rng(100 + seed + n).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
            for n in range(len(prompts))
        ]
    )
    return GeneratedImages(
        np.zeros((len(prompts), 2, 2), int), pixels, prompts, list(range(seed, seed + len(prompts))), {"guidance": 2.0}
    )


def test_both_layouts_are_read_with_their_categories_and_prompts(tmp_path):
    found = read_reference(ReferenceConfig(str(mjhq(tmp_path / "mjhq")), per_category=2))
    assert [(p.category, p.prompt) for p in found.images[:3]] == [
        ("animals", "animals, 0"),
        ("animals", "animals, 1"),
        ("people", "people, 0"),
    ]
    assert len(found.images) == 5 and found.images[0].path.name == "animals0.jpg"
    for n in range(4):
        path = tmp_path / "own" / (f"cats/{n}.png" if n else "top.png")
        image(path, n)
        path.with_suffix(".txt").write_text(f"prompt {n}\n")
    found = read_reference(ReferenceConfig(str(tmp_path / "own")))
    assert [(p.category, p.prompt) for p in found.images] == [
        ("cats", "prompt 1"),
        ("cats", "prompt 2"),
        ("cats", "prompt 3"),
        (None, "prompt 0"),
    ]


def test_what_is_missing_is_counted_named_and_refused_or_left_out_as_allowed(tmp_path):
    folder = mjhq(tmp_path / "mjhq")
    (folder / "mjhq30k_imgs" / "people" / "people3.jpg").unlink()
    about = json.loads((folder / "meta_data.json").read_text())
    (folder / "meta_data.json").write_text(json.dumps({**about, "x": {"category": "art"}}))
    with pytest.raises(
        ValueError,
        match=r"2 of 13 images.*missing images: 1 \(people/people3.jpg\).*without a category or a prompt: 1 \(x\)",
    ):
        read_reference(ReferenceConfig(str(folder)))
    found = read_reference(ReferenceConfig(str(folder), max_bad=0.2))
    assert len(found.images) == 11 and sorted(found.left_out) == [
        "entries of meta_data.json without a category or a prompt",
        "missing images",
    ]
    (folder / "meta_data.json").write_text('{"a": {"category"')
    with pytest.raises(ValueError, match="meta_data.json: not JSON"):
        read_reference(ReferenceConfig(str(folder)))
    (folder / "meta_data.json").unlink()
    with pytest.raises(
        ValueError,
        match=(
            r"11 of 11 images cannot be used. images without a prompt in a .txt next to them: 11 "
            r"\(mjhq30k_imgs/animals"
        ),
    ):
        read_reference(ReferenceConfig(str(folder)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="0 images with a prompt there; give MJHQ-30K's folder with meta_data.json"):
        read_reference(ReferenceConfig(str(tmp_path / "empty")))


def test_numbers_over_all_and_by_category_and_what_is_kept(tmp_path, handle, monkeypatch):
    data = read_reference(ReferenceConfig(str(mjhq(tmp_path / "mjhq"))))
    config = FeaturesConfig(cache=str(tmp_path / "cache"))
    network = open_features(config, handle.image_tokenizer)
    monkeypatch.setattr(feature_cache, "LAST", {})
    measured = reference_quality(handle, data, network, draw, config, max_bad=0.0, seed=3)
    (kept,) = (np.load(path) for path in (tmp_path / "cache").glob("*.npy"))
    generated = network(draw(handle, [""] * 12, 3).pixels)
    v = {key.removeprefix("reference_quality/"): value for key, value in measured.values.items()}
    assert v["frechet_distance"].value == pytest.approx(
        frechet_distance(Gaussian.of(generated), Gaussian.of(kept)), rel=1e-4
    )
    people = [p.category == "people" for p in data.images]
    assert v["frechet_distance/people"].value == pytest.approx(
        frechet_distance(Gaussian.of(generated[people]), Gaussian.of(kept[people])), rel=1e-4
    )
    assert v["kernel_distance/people"].value == pytest.approx(
        kernel_distance(generated[people], kept[people], 3)[0], rel=1e-4
    )
    assert v["frechet_distance/animals"].n == 5 and "frechet_distance/art" not in v and "kernel_distance/art" not in v
    assert any("fewer than 65 images in 3 (animals (5), people (6), art (1))" in line for line in measured.warnings)
    assert measured.provenance.seeds == "3 to 14" and measured.provenance.n == 12

    feature_cache.LAST.clear()
    monkeypatch.setattr(
        "liquid_train.generate.images.load_image", lambda *_: pytest.fail("the images were seen already")
    )
    again = reference_quality(handle, data, network, draw, config, max_bad=0.0, seed=3)
    assert again.values == measured.values and again.provenance == measured.provenance
    image(data.images[0].path, 99)  # other content, the same name
    with pytest.raises(pytest.fail.Exception):
        reference_quality(handle, data, network, draw, config, max_bad=0.0, seed=3)


def test_a_broken_image_is_named_before_anything_is_drawn_and_its_prompt_left_out_where_allowed(
    tmp_path, handle, monkeypatch
):
    data = read_reference(ReferenceConfig(str(mjhq(tmp_path / "mjhq"))))
    data.images[1].path.write_bytes(b"no image")
    config = FeaturesConfig(cache=str(tmp_path / "cache"))
    network = open_features(config, handle.image_tokenizer)
    with pytest.raises(
        ValueError, match=r"1 of 12 images.*images that cannot be read: 1 \(mjhq30k_imgs/animals/animals1.jpg\)"
    ):
        reference_quality(handle, data, network, lambda *_: pytest.fail("drawn"), config, max_bad=0.0)
    asked: list[str] = []

    def noted(handle: ModelHandle, prompts: list[str], seed: int) -> GeneratedImages:
        asked.extend(prompts)
        return draw(handle, prompts, seed)

    monkeypatch.setattr("evals.metrics.reference_quality.DRAWN_TOGETHER", 4)
    measured = reference_quality(handle, data, network, noted, config, max_bad=0.1)
    assert measured.provenance.n == 11 and "animals, 1" not in asked and len(asked) == 11
    assert any("left out: images that cannot be read: 1" in line for line in measured.warnings)
    whole = reference_quality(handle, data, network, draw, config, max_bad=0.1)  # drawn in parts or not: the same
    assert whole.values["reference_quality/frechet_distance"].value == pytest.approx(
        measured.values["reference_quality/frechet_distance"].value, rel=1e-6
    )


def test_the_job_draws_the_prompts_and_writes_the_numbers(tmp_path):
    settings: dict[str, Any] = {
        "shards": "no such set",
        "train_shards": None,
        "device": "cpu",
        "vq": VQSettings("auto", "auto"),
        "guidance": 1.0,
    }
    reference = ReferenceConfig(str(mjhq(tmp_path / "mjhq")), per_category=3)
    model = str(save(tmp_path / "model", grid=(2, 2)))
    run(
        EvalJob(
            checkpoint=model,
            metrics=["reference_quality"],
            reference=reference,
            output=str(tmp_path / "out"),
            **settings,
        )
    )
    content = json.loads((tmp_path / "out" / "model-reference_quality.json").read_text())
    assert content["values"]["reference_quality/frechet_distance/people"]["n"] == 3 and content["receipt"]["n"] == 7
