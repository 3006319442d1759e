"""backbone.architecture: what transformers cannot build or run is one short line, before any folder is made."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, Qwen2Config

from liquid_train.cli import main
from liquid_train.config.compose import conf_dir, load
from liquid_train.errors import UserError
from liquid_train.model.backbone import check_backbone, model_config
from liquid_train.model.settings import BackboneConfig
from tests.shard_sets import mixture_overrides

SMALL: dict[str, Any] = {
    "model_type": "qwen2",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no model": ({"model_type": "nope"}, "model_type=nope: transformers has no such model"),
    "misspelt model": (
        {"model_type": "qwenn2"},
        "model_type=qwenn2: transformers has no such model; did you mean qwen2?",
    ),
    "no name": ({"model_type": 5}, "model_type=5: transformers has no such model"),
    "not a language model": ({"model_type": "vit"}, ": vit has no such field"),
    "misspelt field": ({"hidden_sise": 32}, "hidden_sise: qwen2 has no such field; did you mean hidden_size?"),
    "another model's field": ({"final_logit_softcapping": 30.0}, "final_logit_softcapping: qwen2 has no such field"),
    "private": ({"_attn_implementation": "eager"}, "_attn_implementation: qwen2 has no such field"),
    "no number": ({"hidden_size": "abc"}, "hidden_size=abc: Field 'hidden_size' expected int"),
    "no whole number": ({"num_hidden_layers": 2.5}, "num_hidden_layers=2.5: Field"),
    "negative": ({"hidden_size": -32}, "hidden_size=-32: must be 1 or more"),
    "no layer": ({"num_hidden_layers": 0}, "num_hidden_layers=0: must be 1 or more"),
    "negative share": ({"rms_norm_eps": -1e-6}, "rms_norm_eps=-1e-06: must be 0 or more"),
    "dropout": ({"attention_dropout": 0.1}, "attention_dropout=0.1: training here has no dropout"),
    "heads": ({"num_attention_heads": 3}, "hidden_size=32 does not divide by num_attention_heads=3"),
    "key-value heads": ({"num_key_value_heads": 4}, "num_attention_heads=2 does not divide by num_key_value_heads=4"),
    "odd heads": ({"hidden_size": 30}, "hidden_size=30 / num_attention_heads=2 is odd"),
    "activation": ({"hidden_act": "nope"}, "hidden_act=nope: transformers does not know that value"),
    "kinds of layers": ({"layer_types": ["full_attention"]}, "num_hidden_layers=2: "),
    "positions": ({"rope_scaling": {"rope_type": "nope"}}, "transformers does not know that value"),
    "text for a number inside": ({"rope_theta": "x"}, "a model of these sizes cannot be run: "),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_built_or_run_is_one_short_line(name: str) -> None:
    fields, message = WRONG[name]
    with pytest.raises(UserError) as raised:
        check_backbone(BackboneConfig(architecture=SMALL | fields))
    said = str(raised.value)
    assert said.startswith("backbone.architecture") and message in said
    assert len(said.splitlines()) == 1 and len(said) < 300


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"vocab_size": None},
        {"rope_theta": 1e4},
        {"partial_rotary_factor": 0.5},
        {"head_dim": 8},
        {"num_key_value_heads": 1},
        {"torch_dtype": "bfloat16"},
        *({"model_type": kind} for kind in ("llama", "gemma", "gemma2", "gemma3_text", "qwen3", "granite", "mixtral")),
    ],
    ids=str,
)
def test_what_can_be_run_is_let_through(fields: dict[str, Any]) -> None:
    check_backbone(BackboneConfig(architecture=SMALL | fields))


@pytest.mark.parametrize("name", ["qwen2.5-32b", "gemma2-9b", "llama3.2-1b", "tiny"])
def test_the_named_backbones_are_sound(name: str) -> None:
    assert (conf_dir() / "backbone" / f"{name}.yaml").is_file()
    check_backbone(load("plan", [f"backbone={name}"]).backbone)


def test_a_folder_is_checked_as_well(tmp_path: Path) -> None:
    fields = {k: v for k, v in SMALL.items() if k != "model_type"}
    Qwen2Config(**(fields | {"hidden_size": 30})).save_pretrained(tmp_path / "odd")
    AutoConfig.for_model("gpt2", n_embd=32, n_head=2, n_layer=1).save_pretrained(tmp_path / "other")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text('{"model_type": "qwen2", "hidden_size": "abc"}')
    (tmp_path / "unknown").mkdir()
    (tmp_path / "unknown" / "config.json").write_text('{"model_type": "nope"}')
    for name, message in (
        ("odd", "hidden_size=30 / num_attention_heads=2 is odd"),
        ("other", "gpt2 keeps its blocks elsewhere than in model.layers"),
        ("broken", "'hidden_size' expected int"),
        ("unknown", "nope"),
    ):
        with pytest.raises(UserError, match=message) as raised:
            check_backbone(BackboneConfig(path=str(tmp_path / name)))
        said = str(raised.value)
        assert said.startswith(f"backbone.path={tmp_path / name}: ") and len(said) < 400 and "\n" not in said


def test_an_architecture_of_ones_own_keeps_its_traceback() -> None:
    """Its class may have a bug."""

    class Own(Qwen2Config):
        model_type = "test_own_architecture"

        def __init__(self, **fields: Any) -> None:
            raise KeyError("a bug")

    AutoConfig.register("test_own_architecture", Own)
    with pytest.raises(KeyError, match="a bug"):
        check_backbone(BackboneConfig(architecture=SMALL | {"model_type": "test_own_architecture"}))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["<a>", "<b>", "<c>"], "names entries of a tokenizer that is given"),
        (["<a>", "<b>", "<a>"], "give three different entries"),
        (["<a>", "", "<c>"], "give three different entries"),
    ],
)
def test_special_tokens_need_a_tokenizer(names: list[str], message: str, tmp_path: Path) -> None:
    tokenizer = None if "given" in message else str(tmp_path)
    settings = BackboneConfig(architecture=SMALL, special_tokens=names, tokenizer=tokenizer)
    with pytest.raises(UserError, match=message):
        check_backbone(settings)


def test_it_is_said_before_a_run_folder_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", "experiment=quickstart", *mixture_overrides(tmp_path), "launch.nproc=1"]
    assert main([*arguments, "backbone.architecture.num_attention_heads=3"]) == 2
    err = capsys.readouterr().err.strip()
    assert len(err.splitlines()) == 1 and "does not divide" in err and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "name", sorted(path.stem for path in (conf_dir() / "backbone").glob("*.yaml") if path.stem != "folder")
)
def test_a_config_is_not_changed_by_the_model_that_is_made_of_it(name: str) -> None:
    """transformers completes rope_scaling in place: a run of Llama 3.2 was refused at its own resume."""
    config = load("train", ["data.sources.a.path=set", "data.sources.a.task=text", "train.steps=1", f"backbone={name}"])
    before = copy.deepcopy(config)
    model_config(config.backbone, 1000)
    assert config == before


def test_what_does_not_come_out_right_is_trained_on_request_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Qwen3-Next's linear attention would carry one document's state into the next."""
    fields = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16, "vocab_size": None}
    own = SMALL | fields | {"model_type": "qwen3_next", "head_dim": 16, "shared_expert_intermediate_size": 16}
    given = "{" + ", ".join(f"{name}: {'null' if value is None else value}" for name, value in own.items()) + "}"
    arguments = ["train", "experiment=quickstart", *mixture_overrides(tmp_path), "launch.nproc=1", "train.steps=1"]
    arguments += [f"backbone.architecture={given}", "evals.every=0"]
    assert main(arguments) == 2
    err = capsys.readouterr().err.strip()
    # transformers warns once a process of kernels that it lacks, which is here or in a test before.
    told = [line for line in err.splitlines() if "WARNING" not in line]
    assert len(told) == 1 and "qwen3_next does not come out right here: " in told[0]
    assert "backbone.unproven=true" in told[0] and not (tmp_path / "run").exists()
    assert main([*arguments, "backbone.unproven=true"]) == 0
    assert (tmp_path / "run" / "checkpoints" / "step-00000001").is_dir()
