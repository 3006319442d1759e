"""Language tasks through lm-evaluation-harness, from local files; skipped where the harness is not installed."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from evals.periodic import evaluate
from liquid_train.config.compose import load
from liquid_train.measurement.measurement import ModelHandle
from liquid_train.measurement.settings import LanguageConfig
from liquid_train.training.settings import EvalsConfig
from tests.tiny_model import tiny, vq

TASK = """
task: shapes
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{label}}}}"
doc_to_choice: ["red", "blue", "teal"]
metric_list:
  - metric: acc
"""


@pytest.fixture
def tasks(tmp_path: Path) -> LanguageConfig:
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [{"question": f"what color is the shape, {n}?", "label": n % 3} for n in range(12)]
    (folder / "rows.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "shapes.yaml").write_text(TASK.format(data=folder / "rows.json"))
    return LanguageConfig(["shapes"], str(folder))


def test_image_rows_count_only_where_they_are_asked_to(tasks, tmp_path, monkeypatch):
    pytest.importorskip("lm_eval")
    from evals.metrics.language import check_language, language, language_model

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    model, vocabulary = tiny(tmp_path / "model")
    handle = ModelHandle(model, vocabulary, vq(), (8, 8), "")
    measured = language(handle, tasks, check_language(tasks))
    assert set(measured.values) == {"language/shapes/acc", "language_all/shapes/acc"} and measured.provenance.n == 12
    value = measured.values["language/shapes/acc"]
    assert value.n == 12 and value.low is not None and value.low <= value.value <= value.high  # type: ignore[operator]

    ids = torch.arange(20)[None]
    masked, plain = (language_model(handle, 1, which)._model_call(ids) for which in (True, False))
    own = model(ids, use_cache=False).logits
    torch.testing.assert_close(plain, own)
    torch.testing.assert_close(masked[..., : vocabulary.text_size], own[..., : vocabulary.text_size])
    assert torch.isneginf(masked[..., vocabulary.text_size :]).all()
    text = own[..., : vocabulary.text_size].log_softmax(-1)  # a model without image rows
    torch.testing.assert_close(masked.log_softmax(-1)[..., : vocabulary.text_size], text)
    generated = language_model(handle, 1, True)._model_generate(ids, max_length=40, stop=[])
    assert int(generated.max()) < vocabulary.text_size


def test_what_is_missing_is_told(tasks):
    with pytest.raises(ValueError, match=r"metrics: language needs language.tasks="):
        load("eval", ["checkpoint=x", "metrics=[language]"])
    from evals.metrics.language import check_language

    try:
        import lm_eval  # noqa: F401
    except ImportError:
        with pytest.raises(ValueError, match=r"pip install -e '\.\[language\]'"):
            check_language(tasks)
        return
    with pytest.raises(ValueError, match="no_such_task: no such task in language.include_path"):
        check_language(LanguageConfig(["shapes", "no_such_task"], tasks.include_path))


def rank_main(rank: int, folder: str, tasks: LanguageConfig, world_size: int) -> None:
    torch.set_num_threads(1)
    if world_size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    os.environ |= {"HF_DATASETS_CACHE": f"{folder}/cache-{rank}", "LOCAL_RANK": str(rank)}
    model, vocabulary = tiny(Path(folder) / f"model-{rank}")
    tokenizer = vq()
    config = EvalsConfig(language=tasks, periods={"language": 20})
    settings: dict[str, Any] = {
        "sets": None,
        "grid": (),
        "prompt": "",
        "rank": rank,
        "world_size": world_size,
        "out_dir": Path(folder),
    }
    assert evaluate(model, vocabulary, tokenizer, config, step=10, **settings) == {}
    torch.manual_seed(5)
    found = evaluate(model, vocabulary, tokenizer, config, step=20, **settings)
    # the run's own generator goes on
    torch.testing.assert_close(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(5)))
    (Path(folder) / f"found-{rank}.json").write_text(json.dumps(found))


def test_the_live_model_is_measured_alike_by_one_rank_and_by_two(tasks, tmp_path, monkeypatch):
    pytest.importorskip("lm_eval")
    for name in ("HF_DATASETS_CACHE", "LOCAL_RANK"):
        monkeypatch.setenv(name, "")  # rank_main sets them: what it leaves is undone
    folders = {size: tmp_path / str(size) for size in (1, 2)}
    for size, folder in folders.items():
        folder.mkdir()
        if size == 1:
            rank_main(0, str(folder), tasks, 1)
        else:
            torch.multiprocessing.spawn(rank_main, (str(folder), tasks, size), nprocs=size)
    alone, *both = (
        json.loads((folders[size] / f"found-{rank}.json").read_text()) for size, rank in ((1, 0), (2, 0), (2, 1))
    )
    assert set(alone) == {"eval/language/shapes/acc", "eval/language_all/shapes/acc"}
    assert both == [pytest.approx(alone, abs=1e-6)] * 2
    one, two = (json.loads((folders[size] / "evals" / "step-00000020-language.json").read_text()) for size in (1, 2))
    assert one["receipt"] == two["receipt"] and one["receipt"]["n"] == 12
    assert one["values"]["language/shapes/acc"]["low"] == pytest.approx(two["values"]["language/shapes/acc"]["low"])


def test_a_run_without_the_harness_says_so_and_goes_on(tasks, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    from evals.metrics.language import task_manager

    task_manager.cache_clear()
    model, vocabulary = tiny(tmp_path / "model")
    settings: dict[str, Any] = {
        "sets": None,
        "grid": (),
        "prompt": "",
        "rank": 0,
        "world_size": 1,
        "out_dir": tmp_path,
        "step": 1,
    }
    assert evaluate(model, vocabulary, vq(), EvalsConfig(language=tasks), **settings) == {}
    assert "language could not be measured: metrics: language needs lm-evaluation-harness" in capsys.readouterr().err
