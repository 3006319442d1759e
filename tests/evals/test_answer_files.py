"""Answers that others gave, scored from their files without a model: matched to the questions, and never on fewer of
them in silence."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evals import run
from evals.benchmark import Benchmark
from evals.benchmarks import BENCHMARKS
from evals.questions.collector import BenchmarkSet
from evals.settings import AnnotatedFiles, BenchmarksConfig, EvalJob, MMEFiles, QuestionFiles
from liquid_train.config.compose import load
from tests import benchmark_sets as sets

GIVEN = {
    "vqav2": ["yes", "two", "a red", "yes"],
    "textvqa": ["Stop.", "go"],
    "gqa": ["Table.", "yes", "right"],
    "pope": ["no", "yes", "no", "yes", "yes", "No, there is none", "yes", "yes"],
    "mme": ["yes", "no"] * 6,
}
KINDS: dict[str, Any] = {"vqav2": AnnotatedFiles, "mme": MMEFiles}


def kind(name: str, config: BenchmarksConfig) -> Benchmark:
    return BENCHMARKS.find(name, "metrics")(name, EvalJob(benchmarks=config))


def read_benchmark(name: str, config: BenchmarksConfig) -> BenchmarkSet:
    return kind(name, config).read_set()


def match_answers(benchmark: BenchmarkSet, path: Path, config: BenchmarksConfig) -> tuple[BenchmarkSet, list[str]]:
    return kind(benchmark.name, config).match(benchmark, path)


def questions(name: str, root: Path) -> tuple[BenchmarksConfig, dict[str, Any]]:
    """The benchmark's files but for the images, which nobody needs to score answers."""
    files = {key: value for key, value in getattr(sets, name)(root).items() if key != "images"}
    return replace(BenchmarksConfig(), **{name: KINDS.get(name, QuestionFiles)(**files, predictions="x")}), files


def answers(name: str, config: BenchmarksConfig, folder: Path) -> Path:
    """What `liquid eval` itself writes for the server; POPE's and MME's: the folder."""
    for file, text in kind(name, config).prediction_files(read_benchmark(name, config).items, GIVEN[name]).items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text)
    return {"pope": folder, "mme": folder / "mme"}.get(name, folder / f"{name}.json")


@pytest.mark.parametrize("name", GIVEN)
def test_the_files_that_we_write_give_the_scores_that_we_gave(tmp_path, name, capsys):
    config, files = questions(name, tmp_path / "set")
    path = answers(name, config, tmp_path / "given")
    overrides = [f"benchmarks.{name}.{key}={value}" for key, value in files.items()]
    run.run(
        load(
            "eval",
            [f"metrics=[{name}]", f"benchmarks.{name}.predictions={path}", f"output={tmp_path / 'out'}", *overrides],
        )
    )
    content = json.loads((tmp_path / "out" / f"model-{name}.json").read_text())
    benchmark = read_benchmark(name, config)
    expected = kind(name, config).scores(benchmark.items, GIVEN[name])
    assert {key: v["value"] for key, v in content["values"].items()} == pytest.approx(
        {key: v.value for key, v in expected.items()}
    )
    assert content["receipt"]["n"] == len(benchmark.items) and content["receipt"]["dtype"] is None
    assert f"written to {tmp_path / 'out'}" in capsys.readouterr().out


def test_order_does_not_matter_and_pope_goes_by_ids_where_there_are_some(tmp_path):
    config, _ = questions("vqav2", tmp_path / "v")
    benchmark = read_benchmark("vqav2", config)
    path = tmp_path / "answers.json"
    path.write_text(
        json.dumps(
            [
                {"question_id": item.id, "answer": text}
                for item, text in zip(benchmark.items, GIVEN["vqav2"], strict=True)
            ][::-1]
        )
    )
    assert match_answers(benchmark, path, config)[1] == GIVEN["vqav2"]
    config, _ = questions("pope", tmp_path / "p")
    benchmark = read_benchmark("pope", config)
    for split in ("random", "popular"):
        rows = [{"question_id": n, "answer": f"{split} {n}"} for n in (4, 2, 3, 1)]
        (tmp_path / f"a_{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tmp_path / "answers.json").unlink(missing_ok=True)
    assert match_answers(benchmark, tmp_path, config)[1] == [
        f"{split} {n}" for split in ("popular", "random") for n in (1, 2, 3, 4)
    ]


def test_missing_doubled_and_unknown_answers_are_counted_and_named(tmp_path):
    config, _ = questions("vqav2", tmp_path / "set")
    benchmark, path = read_benchmark("vqav2", config), tmp_path / "answers.json"
    good = [
        {"question_id": item.id, "answer": text} for item, text in zip(benchmark.items, GIVEN["vqav2"], strict=True)
    ]
    for rows, message, left in (
        (good[:3], r"1 of 4 entries.*questions without an answer in the file: 1 \(13\)", 3),
        ([*good, good[1]], r"questions answered more than once: 1 \(11\)", 3),
        ([*good, {"question_id": 99, "answer": "x"}], r"answers to unknown questions: 1 \(99\)", 4),
        (
            [*good[:3], {"question_id": 13, "answer": 7}],
            r"answers without a question_id or a text: 1 \(13\); questions without an answer in the file: 1 \(13\)",
            3,
        ),
        ([*good, "text"], r"entries that are no objects: 1 \(entry 5\)", 4),
        ([], r"no question is left.*questions without an answer in the file: 4 \(10, 11, 12, 13\)", 0),
    ):
        path.write_text(json.dumps(rows))
        with pytest.raises(
            ValueError, match=f"benchmarks.vqav2: {message}" if left == 0 else f"benchmarks.vqav2: .*{message}"
        ):
            match_answers(benchmark, path, config)
        if left:
            matched, given = match_answers(benchmark, path, replace(config, max_bad=0.5))
            assert len(matched.items) == left == len(given)
            measured = kind("vqav2", config).answered(matched, given, data="", files={})
            assert (
                measured.values["vqav2"].n == left
                and "left out: " in measured.warnings[0]
                and "vqav2-left_out.json" in measured.detail["files"]
            )
    with pytest.raises(ValueError, match="benchmarks.max_questions=2: a file of answers is scored whole"):
        match_answers(benchmark, path, replace(config, max_questions=2))


def test_pope_and_mme_tables_are_checked_line_by_line(tmp_path):
    config, _ = questions("pope", tmp_path / "p")
    folder = answers("pope", config, tmp_path / "pope")
    lines = (folder / "pope-random.jsonl").read_text().splitlines()
    (folder / "pope-random.jsonl").write_text("\n".join([*lines[:2], lines[3].replace("a dog", "a cat")]))
    with pytest.raises(
        ValueError,
        match=(
            r"unknown questions: 1 \(random, line 3\); questions without an answer in the file: 2 \(random/3, "
            r"random/4\)"
        ),
    ):
        match_answers(read_benchmark("pope", config), folder, config)
    with pytest.raises(ValueError, match=r"questions without an answer in the file: 4 \(random/1"):
        match_answers(read_benchmark("pope", config), folder / "pope-popular.jsonl", config)
    (folder / "pope-other.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=r"files of an unknown split: 1 \(pope-other.jsonl\)"):
        match_answers(read_benchmark("pope", config), folder, config)
    config, _ = questions("mme", tmp_path / "m")
    folder = answers("mme", config, tmp_path / "mme_answers")
    table = (folder / "OCR.txt").read_text().splitlines()
    (folder / "OCR.txt").write_text("\n".join([*table[:3], "no table"]))
    with pytest.raises(
        ValueError,
        match=r"other than image, question, label, answer: 1 \(OCR.txt, line 4\).*whose image has no other one: 1",
    ):
        match_answers(read_benchmark("mme", config), folder, config)


def test_files_that_are_none_and_settings_that_contradict_are_told(tmp_path):
    config, files = questions("vqav2", tmp_path / "set")
    base = [
        "metrics=[vqav2]",
        f"output={tmp_path / 'out'}",
        *(f"benchmarks.vqav2.{key}={value}" for key, value in files.items()),
    ]

    def score(*more: str) -> None:
        run.run(load("eval", [*base, *more]))

    with pytest.raises(ValueError, match="benchmarks.vqav2.predictions=nowhere.json: no such file"):
        score("benchmarks.vqav2.predictions=nowhere.json")
    path = tmp_path / "answers.json"
    for text, message in (
        ("[{", "answers.json: not JSON"),
        ('{"a": 1}', "answers.json: not a list of {'question_id', 'answer'}"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            score(f"benchmarks.vqav2.predictions={path}")
    with pytest.raises(ValueError, match="its files hold no answers to score with"):
        score(f"benchmarks.vqav2.predictions={path}", "benchmarks.vqav2.annotations=null")
    with pytest.raises(ValueError, match="checkpoint has no value; give checkpoint="):
        score()
    with pytest.raises(
        ValueError,
        match="benchmarks.vqav2.predictions: files are scored without a model; leave out these, or checkpoint=x",
    ):
        score(f"benchmarks.vqav2.predictions={path}", "checkpoint=x")
    with pytest.raises(ValueError, match="metrics=gqa need one"):
        score(f"benchmarks.vqav2.predictions={path}", "metrics=[vqav2,gqa]")
    with pytest.raises(ValueError, match="output has no value"):
        score(f"benchmarks.vqav2.predictions={path}", "output=null")
    assert not (tmp_path / "out").exists()


def test_scoring_imports_no_torch(tmp_path):
    config, files = questions("gqa", tmp_path / "set")
    path = answers("gqa", config, tmp_path / "given")
    arguments = [
        "eval",
        "metrics=[gqa]",
        f"benchmarks.gqa.questions={files['questions']}",
        f"benchmarks.gqa.predictions={path}",
        f"output={tmp_path}",
    ]
    program = (
        f"import sys; from liquid_train.cli import main; assert main({arguments!r}) == 0; assert not "
        f"{{'torch', 'transformers'}} & "
        "set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
