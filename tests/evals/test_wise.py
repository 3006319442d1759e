"""WISE: the published files, the images for its scorer, and a judge's marks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from evals.metrics.wise import CATEGORIES, category, read_wise_prompts, score_marks, wiscore
from evals.run import run
from evals.settings import EvalJob, WISEConfig
from liquid_train.config.compose import load
from liquid_train.image_tokenizer.settings import VQSettings
from tests.tiny_model import save

IDS = {
    "cultural_common_sense": [1, 400],
    "spatio-temporal_reasoning": [401, 567, 568],
    "natural_science": [701, 801, 1000],
}


def entry(id: Any) -> dict[str, Any]:
    return {
        "Category": "Cultural knowledge",
        "Subcategory": "Festival",
        "Prompt": f"a red circle, {id}",
        "Explanation": "red",
        "prompt_id": id,
    }


def published(folder: Path, ids: dict[str, list[Any]] = IDS) -> WISEConfig:
    folder.mkdir(exist_ok=True)
    for stem, own in ids.items():
        (folder / f"{stem}.json").write_text(json.dumps([entry(id) if isinstance(id, int) else id for id in own]))
    return WISEConfig(str(folder))


def marks(path: Path, rows: list[Any]) -> Path:
    keys = ("prompt_id", "consistency", "realism", "aesthetic_quality")
    path.write_text(
        "".join(json.dumps(dict(zip(keys, row, strict=True)) if isinstance(row, tuple) else row) + "\n" for row in rows)
    )
    return path


ALL = [
    (1, 2, 2, 2),
    (400, 0, 0, 0),
    (401, 2, 0, 0),
    (567, 2, 1, 1),
    (568, 0, 2, 0),
    (701, 1, 1, 1),
    (801, 0, 0, 2),
    (1000, 2, 2, 0),
]


def test_wiscore_and_the_weights_of_the_categories_by_hand(tmp_path):
    assert wiscore((2, 1, 0)) == pytest.approx((0.7 * 2 + 0.2) / 2) and wiscore((2, 2, 2)) == pytest.approx(1)
    assert [category(id) for id in (1, 400, 401, 567, 568, 700, 701, 800, 801, 900, 901, 1000)] == [
        c for c in CATEGORIES for _ in range(2)
    ]
    files = [marks(tmp_path / "a.jsonl", ALL[:3]), marks(tmp_path / "b.jsonl", ALL[3:])]
    measured = score_marks(read_wise_prompts(published(tmp_path / "w")), files, 0.0)
    v = {key: value.value for key, value in measured.values.items()}
    means = {"cultural": 0.5, "time": (0.7 + 0.85) / 2, "space": 0.2, "biology": 0.5, "physics": 0.1, "chemistry": 0.9}
    assert {key.removeprefix("wise/"): value for key, value in v.items() if "/" in key} == pytest.approx(means)
    weights = {"cultural": 0.4, "time": 0.167, "space": 0.133, "biology": 0.1, "physics": 0.1, "chemistry": 0.1}
    assert v["wise"] == pytest.approx(sum(weights[name] * means[name] for name in weights))
    assert measured.provenance.n == 8 and "8 of WISE's 1,000 prompts: not the published score" in measured.warnings


def test_what_has_no_marks_is_named_and_never_left_out_in_silence(tmp_path):
    prompts = read_wise_prompts(published(tmp_path / "w"))
    for rows, message in (
        (ALL[1:], r"prompts without marks: 1 \(1\)"),
        ([*ALL, ALL[0]], r"prompts marked more than once: 1 \(1\)"),
        ([*ALL, (2, 1, 1, 1)], r"marks of unknown prompts: 1 \(2\)"),
        ([*ALL[1:], (1, 999, 999, 999)], r"\(999: the judge failed\): 1 \(1\)"),
        ([*ALL[1:], (1, None, 1, 1)], r"marks other than 0 to 2 .*: 1 \(1\)"),
        ([*ALL, {"consistency": 1}], r"marks without a prompt_id: 1 \(m.jsonl, entry 9\)"),
    ):
        path = marks(tmp_path / "m.jsonl", rows)
        with pytest.raises(ValueError, match=f"wise.scores: .*{message}"):
            score_marks(prompts, [path], 0.0)
        measured = score_marks(prompts, [path], 0.5)
        assert measured.provenance.n in (7, 8) and any("left out: " in line for line in measured.warnings)
    measured = score_marks(prompts, [marks(tmp_path / "m.jsonl", ALL[:5])], 0.5)
    assert "wise" not in measured.values and any("is not given" in line for line in measured.warnings)
    (tmp_path / "m.jsonl").write_text('{"prompt_id": 1}\n{"prompt')
    with pytest.raises(ValueError, match="m.jsonl: line 2 is not JSON"):
        score_marks(prompts, [tmp_path / "m.jsonl"], 0.0)


def test_bad_prompt_files_are_told(tmp_path):
    for changed, message in (
        ([1, 1], r"1 of 8 entries.*prompt_ids that stand twice: 1 \(cultural_common_sense.json, entry 2\)"),
        ([1, 2000], "entries without a prompt_id from 1 to 1000: 1"),
        ([1, {**entry(2), "Prompt": " "}], "entries without a Prompt or an Explanation: 1"),
    ):
        config = published(tmp_path / "w", {**IDS, "cultural_common_sense": changed})
        with pytest.raises(ValueError, match=message):
            read_wise_prompts(config)
    config = published(tmp_path / "w")
    (tmp_path / "w" / "natural_science.json").write_text('[{"prompt_id": 1,')
    with pytest.raises(ValueError, match="natural_science.json: not JSON"):
        read_wise_prompts(config)
    (tmp_path / "w" / "natural_science.json").write_text('{"prompt_id": 1}')
    with pytest.raises(ValueError, match="not a list of prompts"):
        read_wise_prompts(config)
    (tmp_path / "w" / "natural_science.json").unlink()
    with pytest.raises(ValueError, match="natural_science.json: no such file"):
        read_wise_prompts(config)
    with pytest.raises(ValueError, match="wise.prompts=nowhere: no such folder"):
        load("eval", ["checkpoint=x", "metrics=[wise]", "wise.prompts=nowhere"])


def test_the_job_draws_what_the_published_scorer_reads_and_later_scores_its_marks(tmp_path, capsys):
    config = published(
        tmp_path / "w", {"cultural_common_sense": [1, 2], "spatio-temporal_reasoning": [401], "natural_science": [701]}
    )
    settings: dict[str, Any] = {
        "shards": "no such set",
        "train_shards": None,
        "device": "cpu",
        "vq": VQSettings("auto", "auto"),
        "guidance": 1.0,
    }
    job = EvalJob(
        checkpoint=str(save(tmp_path / "model", grid=(2, 2))),
        metrics=["wise"],
        wise=config,
        output=str(tmp_path / "out"),
        **settings,
    )
    run(job)
    where = tmp_path / "out" / "predictions" / "model-wise"
    assert {p.name for p in where.iterdir()} == {"1.png", "2.png", "401.png", "701.png", "judge.jsonl"}
    sizes = {Image.open(where / f"{id}.png").size for id in (1, 2, 401, 701)}
    assert len(sizes) == 1 and not np.array_equal(*(np.asarray(Image.open(where / f"{id}.png")) for id in (1, 2)))
    rows = [json.loads(line) for line in (where / "judge.jsonl").read_text().splitlines()]
    assert (
        rows[0] == {"prompt_id": 1, "Prompt": "a red circle, 1", "Explanation": "red", "image": "1.png"}
        and len(rows) == 4
    )
    content = json.loads((tmp_path / "out" / "model-wise.json").read_text())
    assert content["values"] == {} and content["receipt"]["n"] == 4
    path = marks(tmp_path / "m.jsonl", [(1, 2, 2, 2), (2, 0, 0, 0), (401, 1, 1, 1), (701, 0, 0, 0)])
    run(
        load(
            "eval",
            [
                "metrics=[wise]",
                f"wise.prompts={config.prompts}",
                f"wise.scores=[{path}]",
                f"output={tmp_path / 'scored'}",
            ],
        )
    )
    content = json.loads((tmp_path / "scored" / "model-wise.json").read_text())
    assert (
        content["values"]["wise/cultural"]["value"] == pytest.approx(0.5)
        and "4 of WISE's 1,000 prompts" in capsys.readouterr().out
    )
