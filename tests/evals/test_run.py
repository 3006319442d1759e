"""The evaluations: what counts as right, what the baselines are, what the judge sees, and what `liquid eval` writes."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter

from evals.chosen import choose, find_metric
from evals.distances.feature_cache import LAST
from evals.distances.features import feature_name, vq_features
from evals.easy_vqa import real_images
from evals.easy_vqa import shapes_and_colors as t2i
from evals.easy_vqa.prompts import CAPTIONS, named
from evals.easy_vqa.real_images import RealShapes
from evals.easy_vqa.shape_judge import PALETTE, SHAPES, judge
from evals.metrics import vqa
from evals.periodic import evaluate as evaluate_periodically
from evals.questions.shard_questions import load_questions
from evals.run import inputs_of, run
from evals.sets import eval_sets
from evals.settings import EvalJob
from liquid_train.data.shards import ShardSet
from liquid_train.image_tokenizer.settings import VQSettings
from liquid_train.measurement.measurement import ModelHandle
from liquid_train.measurement.settings import FeaturesConfig
from liquid_train.training.settings import EvalsConfig
from tests.shard_sets import image_set, text_set
from tests.tiny_model import save, tiny, vq

# ------------------------------------------------------------------------------------------------ the judge of drawn
# images


def drawing(
    color: str | None, shape: str | None, box: tuple[int, int, int, int], background=(235, 240, 250), size: int = 64
) -> Image.Image:
    """box: left, top, right, bottom, all inside the shape."""
    image = Image.new("RGB", (size, size), background)
    left, top, right, bottom = box
    draw, fill = ImageDraw.Draw(image), PALETTE[str(color)]
    if shape == "circle":
        draw.ellipse(box, fill=fill)
    elif shape == "rectangle":
        draw.rectangle(box, fill=fill)
    else:
        draw.polygon([((left + right) / 2, top), (right, bottom), (left, bottom)], fill=fill)
    return image


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("box", [(20, 20, 50, 50), (0, 0, 11, 11), (52, 30, 63, 41), (30, 55, 38, 63)])
def test_the_judge_knows_shapes_of_every_size_and_place(shape, box):
    for color in PALETTE:
        for blur in (0.0, 0.6):
            image = np.asarray(drawing(color, shape, box).filter(ImageFilter.GaussianBlur(blur)))
            verdict = judge(image)
            assert (verdict.color, verdict.shape) == (color, shape), (color, blur)


def test_the_judge_does_not_see_what_is_not_there():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    two = drawing("red", "circle", (4, 4, 20, 20))
    two.paste(drawing("blue", "circle", (4, 4, 20, 20)).crop((0, 0, 30, 30)), (34, 34))
    pale = Image.new("RGB", (64, 64), (240, 240, 240))
    ImageDraw.Draw(pale).ellipse((10, 10, 40, 40), fill=(220, 225, 220))
    for image in (Image.new("RGB", (64, 64), "white"), noise, two, pale):
        assert judge(np.asarray(image)) == judge(np.zeros((64, 64, 3), np.uint8))  # nothing at all
    long = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(long).ellipse((2, 28, 62, 36), fill="red")  # neither a circle nor a rectangle
    assert judge(np.asarray(long)).color == "red" and judge(np.asarray(long)).shape != "circle"


def test_the_judge_is_right_on_real_images():
    pytest.importorskip("easy_vqa")
    real = real_images.real_images()
    first = RealShapes(real.pixels[:250], real.colors[:250], real.shapes[:250])
    accuracy = t2i.judge_accuracy(first)
    assert accuracy["judge_color_accuracy"] >= 0.99 and accuracy["judge_shape_accuracy"] >= 0.97


# ------------------------------------------------------------------------------------------------ generated images in
# numbers


def test_scores_of_perfect_and_of_repeated_images():
    def boxes(i: int) -> tuple[int, int, int, int]:
        return 2 + 4 * i, 5 + 3 * i, 22 + 4 * i, 25 + 3 * i

    perfect = np.stack([np.asarray(drawing(*named(caption), boxes(i))) for caption in CAPTIONS for i in range(3)])
    result = t2i.score(perfect, 3)
    assert (result["count"], result["right_color"], result["right_shape"], result["distinct_min"]) == (72, 1.0, 1.0, 3)
    assert result["distinct_of_10"] is None  # only ten images a prompt can be that
    repeated = perfect.copy()
    repeated[1] = repeated[0] ^ 1  # invisibly different
    repeated[3:6] = repeated[6:9]  # the second caption's are the third's
    result = t2i.score(repeated, 3)
    assert result["distinct_min"] == 2 and result["prompts"][0]["distinct"] == 2
    assert result["prompts"][1]["right_color"] == 0 and result["right_shape"] == 1.0
    assert result["right_color"] == pytest.approx(23 / 24)


def test_features_do_not_depend_on_the_batch_and_tell_images_apart():
    tokenizer = vq()
    pixels = np.stack([np.asarray(drawing(c, "circle", (10, 10, 40, 40))) for c in ("red", "blue", "teal")])
    network = vq_features(tokenizer)
    features = network(pixels, batch_size=2)
    assert features.shape == (3, tokenizer.encoder.conv_out.in_channels)
    np.testing.assert_allclose(features[2:], network(pixels[2:]), atol=1e-4)
    assert np.abs(features[0] - features[1]).max() > 0.01
    assert "not Inception" in feature_name(tokenizer) and not tokenizer.encoder.conv_out._forward_pre_hooks


# ------------------------------------------------------------------------------------------------ questions


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return image_set(tmp_path_factory.mktemp("sets") / "images", samples=20, per_shard=15)


def oracle(data: vqa.QuestionSet):
    """Answers as one who knows every image by its codes."""
    known = {(data.codes[q.image].tobytes(), q.text): q.answers[0] for q in data.questions}

    def answer(model, vocabulary, items, **options):
        return [f" {known.get((codes.tobytes(), question), 'no').upper()} " for codes, question in items]

    return answer


def test_accuracy_by_type_and_the_baselines(images, monkeypatch, tmp_path):
    data = load_questions(ShardSet(images))
    assert len(data.codes) == 20 and len(data.questions) == 60
    monkeypatch.setattr("liquid_train.generate.text_sampler.answer", oracle(data))
    model, vocabulary = tiny(tmp_path)
    measured = vqa.with_baselines(
        ModelHandle(model, vocabulary, vq(), (8, 8), ""), vqa.VQAData(data, ShardSet(images)), seed=0, batch_size=8
    )
    result, examples = measured.detail, vqa.choose_examples(data.questions, 0)
    assert (
        measured.values["vqa_accuracy"].value == 1.0 == measured.values["vqa_accuracy"].high
        and 0.9 < measured.values["vqa_accuracy"].low < 1
    )
    assert (
        measured.values["vqa_blind_accuracy"].value == result["blind_accuracy"]
        and measured.provenance.n == 60 == measured.values["vqa_accuracy"].n
    )
    assert result["accuracy"] == 1.0 and result["count"] == 60
    assert result["by_type"] == {kind: {"count": 20, "accuracy": 1.0} for kind in ("color", "shape", "yes/no")}
    # colours in thirds (7 red of 20), shapes in halves, "is there a SHAPE" always yes
    assert result["blind_accuracy"] == pytest.approx((7 + 10 + 20) / 60)
    assert result["blind_by_type"]["color"]["accuracy"] == pytest.approx(7 / 20)
    assert result["shuffled_accuracy"] < 0.8 and result["shuffled_by_type"]["color"]["accuracy"] < 0.7
    assert len(result["examples"]) == 12 == len(set(examples))
    kinds = [e["type"] for e in result["examples"]]
    assert {k: kinds.count(k) for k in kinds} == {"color": 4, "shape": 4, "yes/no": 4}
    assert len({data.questions[n].image for n in examples}) == 12


def test_an_answer_is_right_only_when_it_is_the_whole_answer():
    assert vqa.is_right(" Red\n", ["red"]) and vqa.is_right("b", ["a", "b"])
    assert not vqa.is_right("red circle", ["red"]) and not vqa.is_right("", ["red"])


def test_blind_answers_fall_back_to_the_commonest_of_all(images):
    unknown = vqa.Question(0, "never asked?", ("x",), "yes/no")
    known = vqa.Question(0, "What color is the shape?", ("x",), "color")
    # red is as common, and later in the alphabet
    assert vqa.blind_answers(ShardSet(images), [unknown, known]) == ["yes", "blue"]


def test_a_derangement_leaves_nothing_in_place():
    for count in (2, 3, 50):
        order = vqa.derangement(count, seed=1)
        assert sorted(order) == list(range(count)) and all(i != n for n, i in enumerate(order))
    assert vqa.derangement(1, seed=1) is None
    assert vqa.derangement(50, 1) == vqa.derangement(50, 1) != vqa.derangement(50, 2)


# ------------------------------------------------------------------------------------------------ the job


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("model"))


OWN_METRICS = ("vqa", "t2i", "image_quality", "self_vqascore", "captions", "image_tokenizer")


@pytest.fixture
def job(model, images, tmp_path) -> EvalJob:
    settings: dict[str, Any] = {
        "shards": str(images),
        "train_shards": str(images),
        "images_per_prompt": 1,
        "max_images": 6,
        "device": "cpu",
    }
    settings |= {"caption_images": 6, "tokenizer_images": 4, "metrics": list(OWN_METRICS)}
    return EvalJob(checkpoint=str(model), output=str(tmp_path / "evals"), vq=VQSettings("auto", "auto"), **settings)


def some_images() -> RealShapes:
    pixels = [np.asarray(drawing(*named(caption), (9, 9, 40, 40))) for caption in CAPTIONS]
    return RealShapes(np.stack(pixels), [named(c)[0] for c in CAPTIONS], [None, *(named(c)[1] for c in CAPTIONS[1:])])


def test_eval_writes_what_the_report_reads_and_then_has_nothing_to_do(job, tmp_path, monkeypatch):
    monkeypatch.setattr(real_images, "real_images", some_images)
    run(job)
    out = tmp_path / "evals"
    answers, generated = (json.loads((out / f"{name}.json").read_text()) for name in ("vqa", "t2i"))
    assert (
        answers["count"] == 18
        and answers["step"] is None
        and {"accuracy", "by_type", "blind_accuracy", "shuffled_accuracy"} <= answers.keys()
    )
    for example in answers["examples"]:
        assert {"image", "question", "answer", "truth"} <= example.keys()
        with Image.open(out / example["image"]) as image:
            assert image.size == (64, 64)
    assert (
        generated["count"] == 24
        and len(generated["prompts"]) == 24
        and generated["judge_color_accuracy"] == generated["judge_shape_accuracy"] == 1.0
    )
    assert (
        generated["frechet_distance"] >= 0
        and generated["frechet_of_reconstructions"] >= 0
        and "VQ encoder" in generated["frechet_features"]
        and generated["guidance"] == 3.0
    )
    assert (out / "drawn.png").is_file()
    quality = json.loads((out / "model-image_quality.json").read_text())
    assert (
        quality["values"]["frechet_distance"]["value"] == generated["frechet_distance"]
        and quality["receipt"]["sampler"]["guidance"] == 3.0
    )
    assert quality["receipt"]["n"] == 24 and "24 generated images for 64 features" in quality["warnings"][0]
    assert {p.name.removeprefix("model-") for p in out.glob("model-*.json")} == {f"{name}.json" for name in job.metrics}

    code = f"""
import sys
from evals.settings import EvalJob
from liquid_train.image_tokenizer.settings import VQSettings
from evals.run import run
settings = {{"shards": {job.shards!r}, "train_shards": {job.shards!r}, "images_per_prompt": 1,
            "max_images": 6, "batch_size": 3,
            "caption_images": 6, "tokenizer_images": 4, "metrics": {job.metrics!r}}}
run(EvalJob(checkpoint={job.checkpoint!r}, output={job.output!r}, vq=VQSettings("auto", "auto"), **settings))
assert not {{"torch", "transformers"}} & set(sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False
    )
    assert done.returncode == 0 and "nothing to do" in done.stdout and "shuffled" in done.stdout, done.stderr

    kept = (out / "vqa.json").read_bytes()
    run(EvalJob(**{**job.__dict__, "metrics": ["captions"]}))  # what is not chosen stays
    assert (
        (out / "vqa.json").read_bytes() == kept
        and (out / "drawn.png").is_file()
        and (out / "examples" / "000.png").is_file()
    )


def test_only_the_version_of_a_chosen_metric_makes_it_measured_again(job, monkeypatch):
    folder, sets = Path(job.checkpoint), eval_sets(job)
    before = inputs_of(job, folder, choose(job, sets), sets)
    monkeypatch.setattr(find_metric("wise", "metrics"), "version", 2)
    assert "wise" not in job.metrics and inputs_of(job, folder, choose(job, sets), sets) == before
    monkeypatch.setattr(find_metric(job.metrics[0], "metrics"), "version", 2)
    assert inputs_of(job, folder, choose(job, sets), sets) != before


def test_a_run_gets_its_own_evals_folder_and_step(job, tmp_path, model):
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000012"
    checkpoint.mkdir(parents=True)
    (checkpoint / "model").symlink_to(model)
    (checkpoint / "COMMIT.json").write_text(json.dumps({"schema": 1, "step": 12, "files": {}}))
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    run(
        EvalJob(
            **{
                **job.__dict__,
                "checkpoint": str(tmp_path / "run"),
                "output": None,
                "images_per_prompt": 0,
                "train_shards": None,
            }
        )
    )
    answers = json.loads((tmp_path / "run" / "evals" / "vqa.json").read_text())
    assert answers["step"] == 12 and "blind_accuracy" not in answers
    assert not (tmp_path / "run" / "evals" / "t2i.json").exists()
    written = {p.name for p in (tmp_path / "run" / "evals").glob("step-*.json")}
    # none that draws
    assert written == {f"step-00000012-{name}.json" for name in ("vqa", "captions", "image_tokenizer")}


def test_genai_bench_is_drawn_and_scored_by_skill(job, tmp_path):
    bench = tmp_path / "bench"
    bench.mkdir()
    (bench / "prompts.txt").write_text("two cats\na red box\n")
    (bench / "genai_skills.json").write_text('{"counting": [1], "basic": [2], "all": [1, 2]}')
    run(EvalJob(**{**job.__dict__, "metrics": ["genai_bench"], "genai_bench": str(bench)}))
    (path,) = (tmp_path / "evals").glob("model-*.json")
    content = json.loads(path.read_text())
    counts = {key: value["n"] for key, value in content["values"].items()}
    assert counts == {"genai_bench": 2, "genai_bench/all": 2, "genai_bench/basic": 1, "genai_bench/counting": 1}
    assert content["receipt"]["seeds"] == "0 to 1" and "P('Yes')" in content["receipt"]["features"]
    assert not (tmp_path / "evals" / "vqa.json").exists()


def test_bad_input_is_named_and_nothing_is_written(job, tmp_path):
    texts = text_set(tmp_path / "texts", samples=3)
    other = image_set(tmp_path / "other", samples=3, fingerprint="e" * 64)
    for settings, message in (
        ({"shards": str(tmp_path / "none")}, "no such folder"),
        ({"shards": str(texts)}, "carry no questions"),
        ({"shards": str(other)}, "codes of another VQ"),
        ({"train_shards": str(texts)}, "train_shards=.*carry no questions"),
        ({"output": None}, "output has no value"),
        ({"max_images": 0}, "max_images=0"),
        ({"device": "cuda:99"}, "device=cuda:99"),
    ):
        with pytest.raises(ValueError, match=message):
            run(EvalJob(**{**job.__dict__, **settings}))
        assert not (tmp_path / "evals").exists()


# ------------------------------------------------------------------------------------------------ while training


def test_periodic_evaluation_is_the_same_on_one_rank_and_on_two(images, tmp_path, monkeypatch):
    model, vocabulary = tiny(tmp_path / "model")
    data = load_questions(ShardSet(images), 6)
    monkeypatch.setattr("liquid_train.generate.text_sampler.answer", oracle(data))
    config = EvalsConfig(
        vqa_samples=6,
        images=5,
        prompts=["a red circle", "something", "a blue rectangle"],
        guidance=2.0,
        quality_images=8,
        quality_reference=12,
        caption_images=6,
    )

    def evaluate(where: str, rank: int, size: int) -> dict[str, float]:
        return evaluate_periodically(
            model,
            vocabulary,
            vq(),
            config,
            sets=str(images),
            grid=(2, 3),
            prompt=" Draw.",
            step=30,
            out_dir=tmp_path / where,
            rank=rank,
            world_size=size,
        )

    single = evaluate("one", 0, 1)
    assert (
        single["eval/vqa_accuracy"] == single["eval/vqa_accuracy_yes_no"] == 1.0
        and {"eval/right_color", "eval/right_shape"} <= single.keys()
    )
    about = json.loads((tmp_path / "one" / "samples" / "step-00000030.json").read_text())
    assert about == {"step": 30, "prompts": [*config.prompts, *config.prompts[:2]], "columns": 3, "guidance": 2.0}
    with Image.open(tmp_path / "one" / "samples" / "step-00000030.png") as image:
        assert image.size == (3 * 26 - 2, 2 * 18 - 2)

    sums: list[torch.Tensor] = []
    monkeypatch.setattr("torch.distributed.all_reduce", lambda tensor: sums.append(tensor.clone()))
    evaluate("two", 1, 2)
    assert not (tmp_path / "two").exists()  # rank 0 writes
    others = iter(sums)
    monkeypatch.setattr("torch.distributed.all_reduce", lambda tensor: tensor.add_(next(others)))
    assert evaluate("two", 0, 2) == pytest.approx(single, rel=1e-6, abs=1e-6)
    assert (tmp_path / "two" / "samples" / "step-00000030.png").read_bytes() == (
        tmp_path / "one" / "samples" / "step-00000030.png"
    ).read_bytes()
    one, two = (
        json.loads((tmp_path / where / "evals" / "step-00000030-image_quality.json").read_text())
        for where in ("one", "two")
    )
    assert one["receipt"] == two["receipt"] and one["receipt"]["seeds"] == "0 to 7"
    assert {p.name for p in (tmp_path / "one" / "evals").iterdir()} == {
        f"step-00000030-{name}.json" for name in ("vqa", "grid", "image_quality", "self_vqascore", "captions")
    }


def test_a_metric_that_cannot_be_measured_is_told_and_the_others_go_on(images, tmp_path, capsys):
    model, vocabulary = tiny(tmp_path / "model")
    # a kernel distance needs four
    config = EvalsConfig(vqa_samples=2, images=1, prompts=["a red circle"], quality_images=2)
    found = evaluate_periodically(
        model,
        vocabulary,
        vq(),
        config,
        sets=str(images),
        grid=(2, 3),
        prompt="",
        step=1,
        out_dir=tmp_path,
        rank=0,
        world_size=1,
    )
    assert "eval/vqa_accuracy" in found and "eval/frechet_distance" not in found
    assert "image_quality could not be measured: a kernel distance needs at least 4 images" in capsys.readouterr().err


def test_a_full_disk_costs_an_evaluation_its_files_and_nothing_else(images, tmp_path, capsys):
    """A limit on the size of files stands for it: not a byte can be written."""
    model, vocabulary = tiny(tmp_path / "model")
    config = EvalsConfig(
        vqa_samples=2,
        images=1,
        prompts=["a red circle"],
        quality_images=4,
        features=FeaturesConfig(cache=str(tmp_path / "cache")),
    )
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    found = []
    for out, limit in (("room", hard), ("none", 0)):
        LAST.clear()
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            found.append(
                evaluate_periodically(
                    model,
                    vocabulary,
                    vq(),
                    config,
                    sets=str(images),
                    grid=(2, 3),
                    prompt="",
                    step=1,
                    out_dir=tmp_path / out,
                    rank=0,
                    world_size=1,
                )
            )
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        shutil.rmtree(tmp_path / "cache")
    assert found[0] == found[1] and not list((tmp_path / "none" / "evals").glob("step-*"))
    said = capsys.readouterr().err
    for what in (
        "evals: vqa of step 1",
        "evals: the images of step 1",
        "evals: image_quality of step 1",
        "features.cache: ",
    ):
        assert said.count(what) == 1, said
    assert (
        "could not be written: [Errno 27] File too large. The run goes on without." in said
        and len(said.splitlines()) == 6
    )


def test_periodic_evaluation_without_images_or_questions_measures_nothing(tmp_path):
    model, vocabulary = tiny(tmp_path)
    nothing = EvalsConfig(prompts=[])
    assert (
        evaluate_periodically(
            model,
            vocabulary,
            vq(),
            nothing,
            sets=None,
            grid=(),
            prompt="",
            step=1,
            out_dir=tmp_path,
            rank=0,
            world_size=1,
        )
        == {}
    )
