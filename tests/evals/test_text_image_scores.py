"""VQAScore and CLIPScore by models in local folders: equal to what the same models give by hand."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.functional.multimodal import clip_score
from transformers import AutoModelForImageTextToText, AutoProcessor, CLIPModel, CLIPProcessor

from evals.judges.clip import open_clip
from evals.judges.images import Images
from evals.judges.vqa_model import open_judge
from evals.metrics.clipscore import clipscore
from evals.metrics.vqascore import vqascore
from evals.run import run
from evals.settings import CLIPScoreConfig, EvalJob, JudgeConfig
from liquid_train.config.compose import conf_dir, load
from liquid_train.image_tokenizer.settings import VQSettings
from liquid_train.measurement.measurement import ModelHandle
from tests import judge_models
from tests.tiny_model import save, tiny, vq

CPU = torch.device("cpu")
TEXTS = ["a red circle", "a blue rectangle with a teal triangle", "a red circle", "no"]
QUESTION = 'does this figure show "{text}"? please answer yes or no.'


@pytest.fixture(scope="module")
def handle(tmp_path_factory) -> ModelHandle:
    model, vocabulary = tiny(tmp_path_factory.mktemp("model"))
    return ModelHandle(model, vocabulary, vq(), (2, 3), "")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("judges")
    return {name: getattr(judge_models, name)(root / name) for name in ("llava", "blip2_t5", "clip")}


def some(tags: list[list[str]] | None = None) -> Images:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 48, 3), dtype=np.uint8)
    return Images(pixels, TEXTS, tags or [[] for _ in TEXTS], [5, 6, 7, 8], {"guidance": 1.0})


def by_hand(folder: Path, kind: str, answer: str) -> list[float]:
    """One image at a time, the answer token by token."""
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    target = processor.tokenizer(answer, add_special_tokens=False).input_ids
    data, found = some(), []
    for pixels, text in zip(data.pixels, data.texts, strict=True):
        question = QUESTION.replace("{text}", text)
        if kind == "llava":
            question = f"USER: <image>\n{question} ASSISTANT:"
        inputs = processor(images=Image.fromarray(pixels), text=question, return_tensors="pt")
        chance = 1.0
        given: list[int] = []
        for token in target:
            with torch.no_grad():
                if kind == "llava":
                    ids = torch.cat([inputs["input_ids"], torch.tensor([given], dtype=torch.long)], dim=1)
                    logits = model(input_ids=ids, pixel_values=inputs["pixel_values"]).logits
                else:
                    begin = torch.tensor([[model.config.text_config.decoder_start_token_id, *given]])
                    logits = model(**inputs, decoder_input_ids=begin).logits
            chance *= float(logits[0, -1].double().softmax(-1)[token])
            given.append(token)
        found.append(chance)
    return found


@pytest.mark.parametrize(("kind", "answer"), [("llava", "Yes"), ("llava", "a red circle"), ("blip2_t5", "Yes no")])
def test_vqascore_is_the_probability_that_the_model_itself_gives(handle, folders, kind, answer):
    config = JudgeConfig(QUESTION, answer, 3, model=str(folders[kind]))
    judge = open_judge(config, CPU)
    measured = vqascore(handle, judge, some([["basic"], ["advanced"], ["basic", "color"], []]), config)
    expected = by_hand(folders[kind], kind, answer)
    assert len(set(expected)) == 4  # the image decides too: two texts are the same
    assert measured.values["vqascore"].value == pytest.approx(np.mean(expected), rel=1e-4)
    assert measured.values["vqascore/basic"].value == pytest.approx((expected[0] + expected[2]) / 2, rel=1e-4)
    assert (
        measured.values["vqascore/color"].n == 1
        and measured.provenance.n == 4
        and measured.provenance.seeds == "5 to 8"
    )
    assert len(str(measured.provenance.feature_weights)) == 64 and QUESTION in str(measured.provenance.features)


def test_ranks_share_the_images(handle, folders):
    config = JudgeConfig(QUESTION, "Yes", 8, model=str(folders["llava"]))
    judge, data = open_judge(config, CPU), some()
    whole = vqascore(handle, judge, data, config).values["vqascore"].value

    class Part(ModelHandle):
        def gathered(self, values):  # a rank sees its own images, and zeros
            return values

    parts = [
        vqascore(
            Part(handle.model, handle.vocabulary, handle.image_tokenizer, (2, 3), "", rank, 2), judge, data, config
        )
        for rank in range(2)
    ]
    assert sum(part.values["vqascore"].value for part in parts) == pytest.approx(whole, abs=1e-9)


class OlderCLIP(CLIPModel):
    """As torchmetrics expects it: with features, not objects that hold them."""

    def get_image_features(self, *args, **kwargs):
        return super().get_image_features(*args, **kwargs).pooler_output

    def get_text_features(self, *args, **kwargs):
        return super().get_text_features(*args, **kwargs).pooler_output


def test_clipscore_is_the_formula_and_torchmetrics_without_its_weight(handle, folders):
    config, data = CLIPScoreConfig(str(folders["clip"]), "A photo depicts ", 3), some()
    measured = clipscore(handle, open_clip(config, CPU), data, config)
    model, processor = CLIPModel.from_pretrained(folders["clip"]).eval(), CLIPProcessor.from_pretrained(folders["clip"])
    cosines = []
    for pixels, text in zip(data.pixels, data.texts, strict=True):
        inputs = processor(
            images=Image.fromarray(pixels),
            text=["A photo depicts " + text],
            return_tensors="pt",
            truncation=True,
            max_length=40,
        )
        with torch.no_grad():
            found = model.text_model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
            a = model.visual_projection(model.vision_model(pixel_values=inputs["pixel_values"]).pooler_output)[0]
            b = model.text_projection(found.pooler_output)[0]
        cosines.append(float((a @ b) / (a.norm() * b.norm())))
    assert min(cosines) < 0 < max(cosines)  # so that cutting at 0 counts
    assert measured.values["clip_cosine"].value == pytest.approx(np.mean(cosines), abs=1e-5)
    assert measured.values["clipscore"].value == pytest.approx(2.5 * np.clip(cosines, 0, None).mean(), abs=1e-5)

    bare = clipscore(handle, open_clip(config, CPU), data, replace(config, prefix=""))
    images = [torch.from_numpy(p).permute(2, 0, 1) for p in data.pixels]
    theirs = clip_score(images, data.texts, lambda: (OlderCLIP.from_pretrained(folders["clip"]).eval(), processor))  # type: ignore[arg-type]
    assert max(100 * bare.values["clip_cosine"].value, 0) == pytest.approx(float(theirs), abs=1e-3)
    long = clipscore(handle, open_clip(config, CPU), replace(data, texts=["circle " * 40, *TEXTS[1:]]), config)
    assert "1 of 4 texts are longer than CLIP's 40 tokens" in long.warnings[0]


def test_folders_without_such_a_model_are_refused_before_any_work(folders, tmp_path):
    base = ["checkpoint=x", "images_per_prompt=1"]
    with pytest.raises(ValueError, match="metrics: vqascore needs vqascore.model=FOLDER"):
        load("eval", [*base, "metrics=[vqascore]"])
    with pytest.raises(ValueError, match="metrics: clipscore needs clipscore.model=FOLDER"):
        load("eval", [*base, "metrics=[clipscore]"])
    for key in ("vqascore.model", "clipscore.model"):
        with pytest.raises(ValueError, match=f"{key}=liuhaotian/llava: no such folder"):
            load("eval", [*base, f"{key}=liuhaotian/llava"])
        with pytest.raises(ValueError, match=f"{key}={tmp_path}: no config.json there"):
            load("eval", [*base, f"{key}={tmp_path}"])
    with pytest.raises(ValueError, match="metrics: genai_bench_vqascore needs genai_bench=FOLDER"):
        load("eval", [*base, "metrics=[genai_bench_vqascore]", f"vqascore.model={folders['llava']}"])


def test_a_damaged_model_is_told(folders, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folders["llava"], copy)
    (copy / "model.safetensors").write_bytes((copy / "model.safetensors").read_bytes()[:200])
    with pytest.raises(ValueError, match="vqascore.model=.*copy: cannot be opened"):
        open_judge(JudgeConfig(model=str(copy)), CPU)
    (copy / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="vqascore.model=.*copy: no config.json with safetensors"):
        open_judge(JudgeConfig(model=str(copy)), CPU)
    with pytest.raises(ValueError, match="clipscore.model=.*llava: cannot be opened as a CLIP model.*llava"):
        open_clip(CLIPScoreConfig(str(folders["llava"])), CPU)
    with pytest.raises(ValueError, match="vqascore.model=.*clip: cannot be opened"):
        open_judge(JudgeConfig(model=str(folders["clip"])), CPU)
    shutil.copytree(folders["llava"], tmp_path / "deeper")
    about = json.loads((tmp_path / "deeper" / "config.json").read_text())
    about["text_config"]["num_hidden_layers"] = 3
    (tmp_path / "deeper" / "config.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match="9 weights of LlavaForConditionalGeneration are not there"):
        open_judge(JudgeConfig(model=str(tmp_path / "deeper")), CPU)


def test_the_job_asks_the_judges_about_what_it_drew(folders, tmp_path):
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "prompts.txt").write_text("a red circle\na blue rectangle\n")
    (tmp_path / "bench" / "genai_skills.json").write_text(json.dumps({"basic": [1], "all": [1, 2]}))
    settings: dict[str, Any] = {
        "shards": "no such set",
        "train_shards": None,
        "prompts": str(conf_dir() / "prompt_files" / "easy_vqa.txt"),
        "device": "cpu",
        "vq": VQSettings("auto", "auto"),
        "guidance": 1.0,
    }
    model, output = str(save(tmp_path / "model", grid=(2, 2))), str(tmp_path / "out")
    job = EvalJob(
        checkpoint=model,
        output=output,
        images_per_prompt=1,
        metrics=["vqascore", "clipscore", "genai_bench_vqascore"],
        genai_bench=str(tmp_path / "bench"),
        vqascore=JudgeConfig(QUESTION, "Yes", 8, model=str(folders["llava"])),
        clipscore=CLIPScoreConfig(str(folders["clip"])),
        **settings,
    )
    run(job)
    found = {name: json.loads((tmp_path / "out" / f"model-{name}.json").read_text()) for name in job.metrics}
    assert found["vqascore"]["values"]["vqascore"]["n"] == 24 == found["clipscore"]["values"]["clipscore"]["n"]
    counts = {key: value["n"] for key, value in found["genai_bench_vqascore"]["values"].items()}
    assert counts == {"genai_bench_vqascore": 2, "genai_bench_vqascore/basic": 1, "genai_bench_vqascore/all": 2}
    assert (
        "LlavaForConditionalGeneration" in found["vqascore"]["receipt"]["features"]
        and found["clipscore"]["receipt"]["feature_weights"]
    )
    written = tmp_path / "out" / "model-clipscore.json"
    before = written.stat().st_mtime_ns
    run(job)
    assert written.stat().st_mtime_ns == before  # nothing to do
    (folders["clip"] / "config.json").touch()  # another model, as far as anyone can tell
    run(job)
    assert written.stat().st_mtime_ns > before
