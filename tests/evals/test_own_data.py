"""`liquid eval` of a run that was trained on other data than easy-VQA, without one further key; and of one like the
quickstart's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evals.chosen import choose
from evals.judges.caption_pairs import other_captions
from evals.periodic import evaluate
from evals.questions.shard_questions import load_questions
from evals.sets import EvalSets, eval_sets
from evals.settings import EvalJob
from liquid_train.cli import main
from liquid_train.config.compose import load, to_yaml
from liquid_train.data.shards import ShardSet
from liquid_train.training.settings import EvalsConfig
from tests.evals.test_own_kinds import ANIMALS
from tests.shard_sets import image_set, mixture_overrides, text_set
from tests.tiny_model import save, tiny, vq


def trained_run(root: Path, overrides: list[str]) -> Path:
    """A run folder with a checkpoint of step 12."""
    config = load("train", ["experiment=quickstart", *overrides])
    checkpoint = root / "run" / "checkpoints" / "step-00000012"
    checkpoint.mkdir(parents=True)
    save(checkpoint / "model", grid=(2, 2))
    (checkpoint / "COMMIT.json").write_text(json.dumps({"schema": 1, "step": 12, "files": {}}))
    (root / "run" / "config.yaml").write_text(to_yaml(config))
    return root / "run"


FAST = ["device=cpu", "max_images=4", "images_per_prompt=1", "max_prompts=6", "caption_images=6", "guidance=1.0"]


def measured(run_dir: Path) -> dict[str, dict[str, object]]:
    found = {}
    for path in (run_dir / "evals").glob("step-00000012-*.json"):
        content = json.loads(path.read_text())
        found[content["name"]] = content
    return found


def test_a_run_on_other_data_is_measured_without_one_further_key(tmp_path, capsys):
    run_dir = trained_run(tmp_path, mixture_overrides(tmp_path, samples=24, **ANIMALS))
    assert main(["eval", f"checkpoint={run_dir}", *FAST]) == 0
    found, out = measured(run_dir), capsys.readouterr().out
    assert found.keys() == {"vqa", "image_quality", "self_vqascore", "captions", "heldout"}
    assert "t2i: not measured: the data are not easy-VQA" in out
    assert "image_tokenizer: not measured: shard sets hold codes, not the original images; give images=FOLDER" in out
    assert {"vqa_accuracy_other", "vqa_accuracy_yes_no", "vqa_blind_accuracy"} <= found["vqa"]["values"].keys()
    assert found["captions"]["values"].keys() >= {"caption_auc/other_image"}
    assert found["self_vqascore"]["receipt"]["n"] == 6 and found["image_quality"]["receipt"]["n"] == 6
    assert main(["eval", f"checkpoint={run_dir}", *FAST]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert main(["eval", f"checkpoint={run_dir}", *FAST, "metrics=[image_tokenizer]"]) == 2  # by its name: refused
    assert "give images=FOLDER" in capsys.readouterr().err
    for n in range(4):
        pixels = np.random.default_rng(n).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{n}.png")
    photos = [f"images={tmp_path / 'photos'}", "metrics=[image_tokenizer,image_quality]"]
    assert main(["eval", f"checkpoint={run_dir}", *FAST, *photos]) == 0
    found = measured(run_dir)
    assert found["image_tokenizer"]["receipt"]["n"] == 4
    assert "frechet_of_reconstructions" in found["image_quality"]["values"]


def test_a_run_like_the_quickstart_is_measured_as_easy_vqa(tmp_path):
    pytest.importorskip("easy_vqa")
    overrides = mixture_overrides(tmp_path, samples=24)
    run_dir = trained_run(tmp_path, overrides)
    config = EvalJob(checkpoint=str(run_dir))
    sets = eval_sets(config)
    assert sets.easy_vqa and sets.train == str(tmp_path / "images")
    chosen = choose(config, sets)
    whole = {"vqa", "t2i", "image_quality", "self_vqascore", "captions", "image_tokenizer", "heldout"}
    assert set(chosen.names) == whole and not chosen.left_out
    assert main(["eval", f"checkpoint={run_dir}", *FAST, "metrics=[t2i,captions,vqa]"]) == 0
    found = measured(run_dir)
    assert (
        found["t2i"]["receipt"]["n"] == 24 and {"right_color", "judge_shape_accuracy"} <= found["t2i"]["values"].keys()
    )
    assert "caption_auc/full_caption_color" in found["captions"]["values"]
    assert "vqa_accuracy_color" in found["vqa"]["values"]


def test_a_run_on_text_alone_has_its_held_out_loss(tmp_path, capsys):
    texts = text_set(tmp_path / "texts")
    sources = [f"{{text: {{path: {texts}, task: text}}}}" for _ in range(2)]
    base = [
        o for o in mixture_overrides(tmp_path / "unused") if not o.startswith("data.sources") and "heldout" not in o
    ]
    run_dir = trained_run(tmp_path, base)
    text = (run_dir / "config.yaml").read_text()
    config = load("train", ["experiment=quickstart", *base])
    config.data.heldout = {"text": config.data.heldout["text"]}
    config.data.heldout["text"].path = str(texts)
    (run_dir / "config.yaml").write_text(to_yaml(config))
    assert text and sources
    assert main(["eval", f"checkpoint={run_dir}", *FAST]) == 0
    assert measured(run_dir).keys() == {"heldout"}
    assert "vqa: not measured: no shard set with questions: data.heldout of the run" in capsys.readouterr().out


def test_a_checkpoint_of_no_run_says_what_to_give(tmp_path, capsys):
    model = save(tmp_path / "model")
    assert main(["eval", f"checkpoint={model}", f"output={tmp_path / 'out'}", "device=cpu"]) == 2
    assert "belongs to no run; give shards=SET" in capsys.readouterr().err


def test_while_training_other_data_have_images_and_no_colours(tmp_path, capsys):
    model, vocabulary = tiny(tmp_path / "model")
    images = str(image_set(tmp_path / "images", samples=8, **ANIMALS))
    config = EvalsConfig(vqa_samples=2, images=2, guidance=1.0, quality_images=4, caption_images=4)
    found = evaluate(
        model,
        vocabulary,
        vq(),
        config,
        sets=images,
        grid=(2, 2),
        prompt="",
        step=5,
        out_dir=tmp_path,
        rank=0,
        world_size=1,
    )
    assert {"eval/vqa_accuracy", "eval/self_vqascore", "eval/caption_auc/other_image"} <= found.keys()
    assert not any(key.startswith("eval/right_") for key in found)
    about = json.loads((tmp_path / "samples" / "step-00000005.json").read_text())
    assert about["prompts"] == ["a spotted cat, number 0", "a striped dog, number 1"]
    assert not (tmp_path / "evals" / "step-00000005-grid.json").exists()


def test_questions_have_vqav2s_kinds_and_wrong_captions_are_those_of_other_images(tmp_path):
    shards = ShardSet(image_set(tmp_path / "images", samples=7, **ANIMALS))
    assert not EvalSets.of(str(tmp_path / "images")).easy_vqa
    assert {q.kind for q in load_questions(shards).questions} == {"other", "yes/no"}
    right, wrong = other_captions(shards, 5).cases["other_image"]
    assert all(a != b for a, b in zip(right, wrong, strict=True)) and set(wrong) <= set(right) and len(right) == 5
