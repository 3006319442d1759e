"""Model folders in one file or several: plain transformers loads both; exports are cast, complete or not there."""

from __future__ import annotations

import importlib.util
import json
import resource
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from liquid_train.checkpoint.export import export
from liquid_train.checkpoint.safetensors_shards import ShardPlan
from liquid_train.cli import main
from liquid_train.model import backbone
from tests.tiny_model import save, tiny

MIB = 2**20


def small_model(tied: bool) -> PreTrainedModel:
    config = AutoConfig.for_model(
        "qwen2",
        vocab_size=1500,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
    )
    return AutoModelForCausalLM.from_config(config)


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def test_files_are_filled_in_order_up_to_the_limit() -> None:
    sizes = {"a": 3, "b": 3, "huge": 50, "c": 6, "d": 4, "e": 1}
    plan = ShardPlan.of(
        ((name, torch.empty(mib * MIB, dtype=torch.uint8, device="meta")) for name, mib in sizes.items()), 10 / 1024
    )
    assert plan.names == [["a", "b"], ["huge"], ["c", "d"], ["e"]]
    assert plan.size == plan.elements == 67 * MIB
    assert [plan.file(n) for n in (0, 3)] == ["model-00001-of-00004.safetensors", "model-00004-of-00004.safetensors"]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shard_gib", [5.0, 1e-4])
def test_transformers_and_the_trainer_load_what_was_written(tmp_path: Path, tied: bool, shard_gib: float) -> None:
    model = small_model(tied)
    model.config.save_pretrained(tmp_path)
    plan = ShardPlan.of(model.named_parameters(), shard_gib)
    parameters = dict(model.named_parameters())
    for number, names in enumerate(plan.names):
        plan.write_file(tmp_path, number, {name: parameters[name].detach() for name in names})
    plan.write_index(tmp_path)
    assert (len(plan.names) == 1) == (tmp_path / "model.safetensors").is_file() == (shard_gib == 5.0)
    assert (tmp_path / "model.safetensors.index.json").is_file() == (shard_gib != 5.0)
    assert ("lm_head.weight" in stored(tmp_path)) != tied, "tied weights are stored once"
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    plain, info = loaded
    assert not info["missing_keys"] and not info["unexpected_keys"]
    ours = small_model(tied)
    backbone.fill_from_folder(ours, tmp_path)
    for name, parameter in parameters.items():
        assert torch.equal(plain.get_parameter(name), parameter) and torch.equal(ours.get_parameter(name), parameter)


def test_an_export_is_cast_cut_and_complete(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, _ = tiny(tmp_path / "unused")
    source = save(tmp_path / "model")
    output = tmp_path / "new" / "bf16"
    assert main(["checkpoint", "export", str(source), str(output), "--dtype", "bf16", "--shard-gib", "1e-4"]) == 0
    assert "parameters" in capsys.readouterr().out
    files = sorted(output.glob("*.safetensors"))
    assert len(files) > 1
    for path in files:
        with safe_open(path, "pt") as file:
            assert len(list(file.keys())) == 1 or path.stat().st_size < 1e-4 * 2**30 + 4096
    plain = AutoModelForCausalLM.from_pretrained(output)
    assert plain.dtype == torch.bfloat16 and json.loads((output / "config.json").read_text())["dtype"] == "bfloat16"
    for name, parameter in model.named_parameters():
        assert torch.equal(plain.get_parameter(name), parameter.bfloat16())
    assert AutoTokenizer.from_pretrained(output).encode("a red circle") == AutoTokenizer.from_pretrained(source).encode(
        "a red circle"
    )
    assert {p.name for p in source.iterdir()} - {"model.safetensors"} <= {p.name for p in output.iterdir()}
    assert backbone.ModelCard.read(output) == backbone.ModelCard.read(source)
    as_stored = tmp_path / "as-stored"
    as_stored.mkdir()
    export(source, as_stored)
    assert all(torch.equal(tensor, stored(as_stored)[name]) for name, tensor in stored(source).items())


def test_an_export_to_an_object_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """fsspec's in-memory store stands for the others: the same calls; config.json, without which a folder is no model,
    comes last."""
    source, url = save(tmp_path / "model"), "memory://bucket/exported"
    assert main(["checkpoint", "export", str(source), url, "--dtype", "bf16", "--shard-gib", "1e-4"]) == 0
    store = fsspec.filesystem("memory")
    written = sorted(store.ls("/bucket/exported"), key=lambda entry: entry["created"])
    assert written[-1]["name"].endswith("/config.json")
    store.get("/bucket/exported/", str(tmp_path / "back"), recursive=True)
    export(source, tmp_path / "local", dtype="bf16", shard_gib=1e-4)
    assert {p.name: p.read_bytes() for p in (tmp_path / "back").iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "local").iterdir()
    }
    capsys.readouterr()
    for output, message in (
        (url, "holds a model already"),
        ("nosuch://bucket/x", "nosuch"),
        ("s3://bucket/x", "pip install s3fs"),
    ):
        if output.startswith("s3") and importlib.util.find_spec("s3fs"):
            continue
        assert main(["checkpoint", "export", str(source), output]) == 2
        assert message in capsys.readouterr().err


def test_an_export_that_cannot_be_made_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = save(tmp_path / "model")
    before = sorted(p.name for p in source.iterdir())
    capsys.readouterr()  # transformers' progress bar
    for arguments, message in (
        ([str(source), str(source)], "exists already"),
        ([str(source), str(source / "config.json")], "exists already"),
        ([str(source)], "export needs a folder"),
        ([str(source), str(tmp_path / "x"), "--shard-gib", "0"], "--shard-gib 0: must be above 0"),
        ([str(tmp_path / "nowhere"), str(tmp_path / "x")], "no such folder"),
    ):
        assert main(["checkpoint", "export", *arguments]) == 2
        err = capsys.readouterr().err
        assert message in err and len(err.strip().splitlines()) == 1
    weights = stored(source)
    weights["model.norm.weight"][3] = 1e5
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="model.norm.weight holds values beyond fp16's 65504; use bf16"):
        export(source, tmp_path / "x", dtype="fp16")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(ValueError, match="could not be written"):
            export(source, tmp_path / "x")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (
        sorted(p.name for p in tmp_path.iterdir()) == ["model"] and sorted(p.name for p in source.iterdir()) == before
    )
