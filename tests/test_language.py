"""Language tasks through lm-evaluation-harness, from local files; skipped where the harness is not installed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from evals.measurement import ModelHandle
from liquid_train.config import load
from liquid_train.eval_settings import LanguageConfig
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
    from evals.language import check_language, language, language_model

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    model, vocabulary = tiny(tmp_path / "model")
    handle = ModelHandle(model, vocabulary, vq(), (8, 8), "")
    measured = language(handle, tasks, check_language(tasks))
    assert set(measured.values) == {"language/shapes/acc", "language_all/shapes/acc"} and measured.receipt.n == 12
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
    drawn = language_model(handle, 1, True)._model_generate(ids, max_length=40, stop=[])
    assert int(drawn.max()) < vocabulary.text_size


def test_what_is_missing_is_told(tasks):
    with pytest.raises(ValueError, match=r"metrics: language needs language.tasks="):
        load("eval", ["checkpoint=x", "metrics=[language]"])
    from evals.language import check_language

    try:
        import lm_eval  # noqa: F401
    except ImportError:
        with pytest.raises(ValueError, match=r"pip install 'liquid-train\[language\]'"):
            check_language(tasks)
        return
    with pytest.raises(ValueError, match="no_such_task: no such task in language.include_path"):
        check_language(LanguageConfig(["shapes", "no_such_task"], tasks.include_path))
