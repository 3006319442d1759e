"""Published benchmarks from local files: what is read, what is left out and named, what scores and prediction files
come of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evals.benchmark import Benchmark
from evals.benchmarks import BENCHMARKS
from evals.questions.collector import BenchmarkSet
from evals.questions.published_rules import pope_scores
from evals.questions.scoring import yes_no_scores
from evals.run import run
from evals.settings import AnnotatedFiles, BenchmarksConfig, EvalJob, MMEFiles, QuestionFiles
from liquid_train.config.compose import load
from liquid_train.image_tokenizer.settings import VQSettings
from liquid_train.measurement.measurement import ModelHandle
from tests import benchmark_sets as sets
from tests.tiny_model import save, tiny, vq


def kind(name: str, config: BenchmarksConfig | None = None) -> Benchmark:
    return BENCHMARKS.find(name, "metrics")(name, EvalJob(benchmarks=config or BenchmarksConfig()))


def read(name: str, files: dict[str, Any], **settings: Any) -> BenchmarkSet:
    files_of = {"vqav2": AnnotatedFiles, "mme": MMEFiles}.get(name, QuestionFiles)
    return kind(name, replace(BenchmarksConfig(**settings), **{name: files_of(**files)})).read_set()


def scores(benchmark: BenchmarkSet, given: list[str]) -> dict[str, float]:
    return {key: value.value for key, value in kind(benchmark.name).scores(benchmark.items, given).items()}


def prediction_files(benchmark: BenchmarkSet, given: list[str]) -> dict[str, str]:
    return kind(benchmark.name).prediction_files(benchmark.items, given)


# ------------------------------------------------------------------------------------------------ each format


def test_vqav2_by_hand_and_the_file_for_its_server(tmp_path):
    found = read("vqav2", sets.vqav2(tmp_path))
    assert [(i.id, i.image.name, i.group, len(i.answers)) for i in found.items] == [
        (10, "COCO_val2014_000000000001.jpg", "yes/no", 10),
        (11, "COCO_val2014_000000000002.jpg", "number", 10),
        (12, "COCO_val2014_000000000001.jpg", "other", 10),
        (13, "COCO_val2014_000000000002.jpg", "yes/no", 10),
    ]
    other = (2 * 1 / 3 + 8 * 2 / 3) / 10  # two said red: one other is left for each of them, two for the rest
    expected = {"vqav2": (1 + 1 + other + 0) / 4, "vqav2/yes_no": 0.5, "vqav2/number": 1.0, "vqav2/other": other}
    assert scores(found, ["yes", "two", "a red", "yes"]) == pytest.approx(expected)
    files = prediction_files(found, ["yes", "two", "red", "é"])
    assert json.loads(files["vqav2.json"]) == [
        {"question_id": 10 + n, "answer": a} for n, a in enumerate(["yes", "two", "red", "é"])
    ]


def test_textvqa_gqa_and_their_test_splits(tmp_path):
    found = read("textvqa", sets.textvqa(tmp_path / "t"))
    assert scores(found, ["Stop.", "go"]) == {"textvqa": 0.5} and found.labelled
    hidden = read("textvqa", sets.textvqa(tmp_path / "h", answers=False))
    assert len(hidden.items) == 2 and not hidden.labelled
    assert json.loads(prediction_files(hidden, ["x", "y"])["textvqa.json"])[1] == {
        "question_id": 1,
        "answer": "y",
    }
    found = read("gqa", sets.gqa(tmp_path / "g"))
    assert scores(found, ["Table.", "yes", "right"]) == pytest.approx(
        {"gqa": 2 / 3, "gqa/open": 1.0, "gqa/binary": 0.5}
    )
    assert json.loads(prediction_files(found, ["a", "b", "c"])["gqa.json"])[0] == {
        "questionId": "001",
        "prediction": "a",
    }


def test_pope_by_split(tmp_path):
    found = read("pope", sets.pope(tmp_path))
    assert [i.group for i in found.items] == ["popular"] * 4 + ["random"] * 4
    given = ["no", "yes", "no", "yes", "yes", "No, there is none", "yes", "yes"]  # labels: no yes no yes
    values = kind("pope").scores(found.items, given)
    for split, part in (("popular", slice(4)), ("random", slice(4, 8))):
        published = pope_scores(given[part], [i.answers[0] for i in found.items[part]])
        assert {key: values[f"pope/{split}/{key}"].value for key in published} == pytest.approx(published)
    assert values["pope/random/accuracy"].value == 0.25 and values["pope/accuracy"].value == 0.625 == (1 + 0.25) / 2
    assert values["pope/random/f1"].low <= values["pope/random/f1"].value <= values["pope/random/f1"].high
    files = prediction_files(found, given)
    assert set(files) == {"pope-popular.jsonl", "pope-random.jsonl"}
    assert json.loads(files["pope-random.jsonl"].splitlines()[1]) == {
        "question": "a dog, 2?",
        "answer": "No, there is none",
    }
    assert yes_no_scores(np.zeros(3, bool), np.ones(3, bool))["precision"].value == 0.0


def test_mme_from_both_layouts(tmp_path):
    found = read("mme", sets.mme(tmp_path))
    assert [i.group for i in found.items] == ["posters"] * 4 + ["OCR"] * 4 + ["code_reasoning"] * 4
    values = scores(found, ["yes", "no", "yes", "yes"] + ["no"] * 4 + ["Yes.", "No."] * 2)
    # no sums: most subtasks are missing
    assert values == {"mme/posters": 75.0 + 50.0, "mme/OCR": 50.0, "mme/code_reasoning": 200.0}
    assert "no questions of existence" in kind(found.name).warnings(found)[0]
    files = prediction_files(found, ["a\tb"] * 12)
    assert files["mme/OCR.txt"].splitlines()[0] == "0001.png\tIs it A? Please answer yes or no.\tYes\ta b"


# ------------------------------------------------------------------------------------------------ bad files


def test_what_cannot_be_used_is_named_and_refused_or_left_out_as_allowed(tmp_path):
    questions, annotations = sets.vqav2_questions(), sets.vqav2_annotations()
    far = {"question_id": 20, "image_id": 7, "question": "where?"}
    lonely = {**annotations[0], "question_id": 99}
    for n, (asked, answered, message) in enumerate(
        [
            ([*questions, questions[0]], annotations, r"1 of 5 entries.*question ids that stand twice: 1 \(10\)"),
            (
                [*questions, far],
                [*annotations, {**annotations[0], "question_id": 20}],
                r"missing images: 1 \(7 of question 20\)",
            ),
            (questions, annotations[:2], r"questions without answers: 2 \(12, 13\)"),
            (questions, [*annotations[:3], {**annotations[3], "answers": []}], r"questions without answers: 1 \(13\)"),
            (questions, [*annotations, annotations[1]], r"annotations that stand twice: 1 \(11\)"),
            (questions, [*annotations, lonely], r"annotations of unknown questions: 1 \(99\)"),
            ([*questions, "text"], annotations, r"entries that are no objects: 1 \(entry 5\)"),
            ([*questions, {"question_id": 10.5}], annotations, r"without answers: 1 \(None\)"),
            ([], [], "no question is left"),
        ]
    ):
        files = sets.vqav2(tmp_path / str(n), asked, answered)
        with pytest.raises(ValueError, match=f"benchmarks.vqav2: .*{message}"):
            read("vqav2", files)
        if asked:
            found = read("vqav2", files, max_bad=0.5)
            assert len(found.items) >= 2 and sum(map(len, found.left_out.values())) in (1, 2)
            assert "left out: " in kind(found.name).warnings(found)[0]


def test_files_of_another_format_are_told(tmp_path):
    def broken(name: str, text: str) -> str:
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    files = sets.vqav2(tmp_path)
    twice = broken("twice.json", '{"1": {}, "1": {}}')
    for name, changed, message in (
        ("vqav2", {**files, "questions": broken("a.json", "{")}, "a.json: not JSON"),
        ("vqav2", {**files, "questions": broken("b.json", "[1]")}, "not an object"),
        ("vqav2", {**files, "questions": files["annotations"]}, "no list 'questions'"),
        ("vqav2", {**files, "annotations": "nowhere.json"}, "nowhere.json: no such file"),
        ("vqav2", {**files, "images": str(tmp_path / "none")}, "no such folder"),
        ("vqav2", {**files, "images": None}, "benchmarks.vqav2.images has no value"),
        ("gqa", {"questions": twice, "images": files["images"]}, r"keys that stand twice: 1 \(1\)"),
        (
            "pope",
            {"questions": broken("q_random.json", '{"label": "yes"}\n{'), "images": files["images"]},
            "line 2 is not JSON",
        ),
        (
            "pope",
            {"questions": broken("p_random.json", '{"label": "maybe", "question_id": 3}'), "images": files["images"]},
            r"labels other.*random/3",
        ),
        ("mme", {"folder": str(tmp_path)}, "none of MME's folders"),
    ):
        with pytest.raises(ValueError, match=message):
            read(name, changed)
    (tmp_path / "OCR").mkdir()
    sets.image(tmp_path / "OCR" / "1.png")
    sets.image(tmp_path / "OCR" / "2.png")
    (tmp_path / "OCR" / "1.txt").write_text("only one\tYes\n")
    with pytest.raises(
        ValueError, match=r"images without questions: 1 \(OCR/2\); files that are not two lines.*1 \(OCR/1.txt\)"
    ):
        read("mme", {"folder": str(tmp_path)})
    sets.image(Path(files["images"]) / "000000000001.png")
    with pytest.raises(ValueError, match=r"two images of one name: 1 \(1\)"):
        read("vqav2", files)


def test_a_broken_image_is_left_out_by_name_where_that_is_allowed(tmp_path):
    files = sets.vqav2(tmp_path)
    (tmp_path / "val2014" / "COCO_val2014_000000000002.jpg").write_bytes(b"no image")
    model, vocabulary = tiny(tmp_path / "model")
    handle = ModelHandle(model, vocabulary, vq(), (2, 2), "")
    with pytest.raises(
        ValueError, match=r"2 of 4 entries.*not an image: 2 \(COCO_val2014_000000000002.jpg of question 11, "
    ):
        kind("vqav2").ask(handle, read("vqav2", files), 4)
    allowed = BenchmarksConfig(max_bad=0.5, max_new_tokens=2, suffix=" short")
    measured = kind("vqav2", allowed).ask(handle, read("vqav2", files), 4)
    assert measured.provenance.n == 2 == measured.values["vqav2"].n and "not an image: 2" in measured.warnings[0]
    assert len(json.loads(measured.detail["files"]["vqav2-left_out.json"])["not an image"]) == 2
    other = kind("vqav2", replace(allowed, suffix="")).ask(handle, read("vqav2", files), 4)
    assert other.provenance.prompts != measured.provenance.prompts and other.provenance.data == measured.provenance.data


# ------------------------------------------------------------------------------------------------ the job


def test_the_job_writes_scores_and_prediction_files_and_then_has_nothing_to_do(tmp_path, capsys):
    vqav2, pope, mme = (getattr(sets, name)(tmp_path / name) for name in ("vqav2", "pope", "mme"))
    config = BenchmarksConfig(
        max_new_tokens=2, vqav2=AnnotatedFiles(**vqav2), pope=QuestionFiles(**pope), mme=MMEFiles(**mme)
    )
    settings: dict[str, Any] = {
        "shards": "no such set",
        "output": str(tmp_path / "out"),
        "device": "cpu",
        "vq": VQSettings("auto", "auto"),
    }
    job = EvalJob(
        checkpoint=str(save(tmp_path / "model")), metrics=["vqav2", "pope", "mme"], benchmarks=config, **settings
    )
    run(job)
    out = tmp_path / "out"
    content = json.loads((out / "model-vqav2.json").read_text())
    assert content["values"]["vqav2"]["n"] == 4 and content["receipt"]["sampler"] == {
        "greedy": None,
        "max_new_tokens": 2,
    }
    assert {p.relative_to(out / "predictions").as_posix() for p in (out / "predictions").rglob("*") if p.is_file()} == {
        "model-vqav2.json",
        "model-pope-random.jsonl",
        "model-pope-popular.jsonl",
        "model-mme/OCR.txt",
        "model-mme/posters.txt",
        "model-mme/code_reasoning.txt",
    }
    run(job)
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(ValueError, match="benchmarks.gqa.questions has no value"):
        run(replace(job, metrics=["gqa"], output=str(tmp_path / "other")))
    assert not (tmp_path / "other").exists()


def test_the_keys_take_paths_as_they_are():
    override = "benchmarks.vqav2.images=/data/my images, all"
    config = load(
        "eval", ["checkpoint=x", "metrics=[vqav2]", override, "benchmarks.suffix= Answer briefly, in one word."]
    )
    assert (
        config.benchmarks.vqav2.images == "/data/my images, all"
        and config.benchmarks.suffix == " Answer briefly, in one word."
    )
    with pytest.raises(ValueError, match="benchmarks.max_bad=1.5"):
        load("eval", ["checkpoint=x", "benchmarks.max_bad=1.5"])
