"""Held-out loss and accuracy of a trained model: what a plain forward pass of each document gives, from the run's own
config."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from evals.run import run
from evals.settings import EvalJob
from liquid_train.config.compose import load, to_yaml
from liquid_train.config.schema import TrainJob
from liquid_train.data.tasks import FIRST as TASKS
from liquid_train.image_tokenizer.settings import VQSettings
from liquid_train.measurement.settings import HeldoutConfig
from liquid_train.model.backbone import read_vocabulary
from liquid_train.training.heldout import HeldoutSet, heldout_set
from liquid_train.vocabulary import Vocabulary
from tests.shard_sets import image_set, mixture_overrides
from tests.tiny_model import save, vq


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainJob:
    """That of a run whose folder holds a checkpoint of step 12."""
    root = tmp_path_factory.mktemp("heldout")
    limits = [f"data.heldout.{task}.max_samples=8" for task in ("text", "t2i", "i2t", "vqa")]
    config: TrainJob = load("train", ["experiment=quickstart", *mixture_overrides(root), *limits])
    checkpoint = root / "run" / "checkpoints" / "step-00000012"
    checkpoint.mkdir(parents=True)
    save(checkpoint / "model")
    (checkpoint / "COMMIT.json").write_text(json.dumps({"schema": 1, "step": 12, "files": {}}))
    (root / "run" / "config.yaml").write_text(to_yaml(config))
    return config


def packed(config: TrainJob, vocabulary: Vocabulary, **options: Any) -> HeldoutSet:
    return heldout_set(
        config.data,
        config.loss,
        config.seed,
        vocabulary,
        vq().fingerprint,
        micro_batch=config.train.micro_batch,
        **options,
    )


def evaluated(config: TrainJob, **settings: Any) -> dict[str, Any]:
    run_dir = Path(config.run.dir)
    run(
        EvalJob(
            **{
                "checkpoint": str(run_dir),
                "metrics": ["heldout"],
                "device": "cpu",
                "vq": VQSettings("auto", "auto"),
                **settings,
            }
        )
    )
    found: dict[str, Any] = json.loads((run_dir / "evals" / "step-00000012-heldout.json").read_text())
    return found


def test_every_document_counts_as_in_a_plain_forward_pass(config: TrainJob) -> None:
    folder = Path(config.run.dir) / "checkpoints" / "step-00000012" / "model"
    model, vocabulary = AutoModelForCausalLM.from_pretrained(folder), read_vocabulary(folder)
    data = packed(config, vocabulary)
    sums = np.zeros((3, len(TASKS)))
    for row in data.rows:
        first = 0
        for length in row.lengths[: row.documents]:
            part = slice(first, first + length)
            first += length
            targets = torch.from_numpy(row.labels[part][1:])
            with torch.no_grad():
                logits = model(torch.from_numpy(row.ids[part])[None]).logits[0, :-1, : vocabulary.image_end]
            wanted = targets != -100
            losses = F.cross_entropy(logits[wanted], targets[wanted], reduction="sum")
            sums[:, row.tasks[part][0]] += [
                float(losses),
                float((logits[wanted].argmax(-1) == targets[wanted]).sum()),
                float(wanted.sum()),
            ]
    found = evaluated(config)
    assert (
        found["step"] == 12
        and found["receipt"]["n"] == sum(row.documents for row in data.rows)
        and found["warnings"] == []
    )
    values = found["values"]
    assert len(values) == 8
    for i, task in enumerate(TASKS[:4]):
        loss, accuracy = values[f"heldout_loss/{task}"], values[f"heldout_accuracy/{task}"]
        assert loss["value"] == pytest.approx(sums[0, i] / sums[2, i], rel=1e-5) and accuracy["value"] == pytest.approx(
            sums[1, i] / sums[2, i]
        )
        assert (
            loss["low"] < loss["value"] < loss["high"]
            and loss["n"] == sums[2, i]
            and "of documents" in loss["interval"]
        )


def test_the_whole_split_or_a_part_of_it(config: TrainJob) -> None:
    usual = evaluated(config)["receipt"]
    whole = evaluated(config, heldout=HeldoutConfig(whole=True))
    assert whole["receipt"]["n"] > 3 * usual["n"] and whole["receipt"]["data"] != usual["data"]
    part = evaluated(config, heldout=HeldoutConfig(batches=2))
    assert 0 < part["receipt"]["n"] < usual["n"]
    assert part["receipt"] == evaluated(config, heldout=HeldoutConfig(batches=2, run=config.run.dir))["receipt"]


def test_documents_that_fit_no_gap_get_rows_of_their_own(config: TrainJob) -> None:
    vocabulary = read_vocabulary(Path(config.run.dir) / "checkpoints" / "step-00000012" / "model")
    longer = packed(replace(config, data=replace(config.data, seq_len=512)), vocabulary, whole=True)
    shorter = packed(replace(config, data=replace(config.data, seq_len=100)), vocabulary, whole=True)
    tokens = [sum(int((row.tasks == TASKS.index("text")).sum()) for row in data.rows) for data in (longer, shorter)]
    assert tokens[0] == tokens[1] > 0  # texts are cut, none is lost
    assert (
        not longer.noted
        and sum(shorter.noted.values()) > 0
        and all(key.startswith("data.heldout.") for key in shorter.noted)
    ), shorter.noted


def test_what_cannot_be_measured_is_said_before(config: TrainJob, tmp_path: Path) -> None:
    folder = Path(config.run.dir) / "checkpoints" / "step-00000012" / "model"
    with pytest.raises(ValueError, match="checkpoint=.* belongs to no run; give heldout.run=RUN"):
        evaluated(config, checkpoint=str(save(tmp_path / "model")), output=str(tmp_path / "evals"))
    with pytest.raises(ValueError, match="no config.yaml there"):
        evaluated(config, heldout=HeldoutConfig(run=str(tmp_path)))
    (tmp_path / "config.yaml").write_text(to_yaml(replace(config, data=replace(config.data, heldout={}))))
    with pytest.raises(ValueError, match="data.heldout names no sources"):
        evaluated(config, heldout=HeldoutConfig(run=str(tmp_path)))
    other = {
        "t2i": replace(
            config.data.heldout["t2i"], path=str(image_set(tmp_path / "other", samples=3, fingerprint="e" * 64))
        )
    }
    with pytest.raises(ValueError, match="data.heldout.t2i.path=.*codes of another VQ"):
        packed(replace(config, data=replace(config.data, heldout=other)), read_vocabulary(folder))
    with pytest.raises(ValueError, match="heldout.batches=0"):
        load("eval", ["checkpoint=x", "heldout.batches=0"])
