"""Values of the command line: text is taken as it stands, everything else by the type that the schema gives the key."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from liquid_train.config.compose import conf_dir, load, read_config, to_yaml
from liquid_train.config.overrides import CommandLine
from liquid_train.errors import UserError
from tests.distributed.running import ENV

TEXT = ["data.sources.a.path=set", "data.sources.a.task=text", "train.steps=1"]

any_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=40)


@given(any_text)
@example("${run.name}")
@example("\\${run.name}")
@example("\\\\${oc.env:HOME}x\\")
@example("a=b, (c) [d] {e: f} 'g' \"h\"")
@example("2024_01")
@example("1e3")
@example("true")
@example("犬 größe ~+")
@example("~")
@settings(max_examples=60, deadline=None)
def test_text_is_taken_as_it_stands_and_survives_a_runs_config(text: str) -> None:
    config = load("train", [*TEXT, f"tracker.wandb.project={text}", f"data.sources.a.path={text}"])
    path = os.path.expanduser(text) if text == "~" or text.startswith("~/") else text
    assert (config.tracker.wandb.project, config.data.sources["a"].path) == (text, path)


@pytest.mark.parametrize("text", ["${run.name}", "1e3", "true", "null", "a: b", "- x", "#", "'", "犬", " spaced "])
def test_a_runs_config_is_read_back_as_it_was(text: str, tmp_path: Path) -> None:
    config = load(
        "train", [*TEXT, f"run.name={text}", "run.dir=r", "optimizer.eps=1e-8", "backbone.architecture.x=1e-6"]
    )
    (tmp_path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert read_config(tmp_path) == config and config.run.name == text
    assert config.backbone.architecture["x"] == 1e-6


def test_a_path_may_begin_with_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell leaves KEY=~/... as it is; ~ elsewhere is part of a name."""
    monkeypatch.setenv("HOME", "/home/me")
    config = load("train", [*TEXT, "data.sources.a.path=~/set", "run.dir=~/runs/a", "run.name=~/b", "data.cache=a/~/c"])
    assert (config.data.sources["a"].path, config.run.dir) == ("/home/me/set", "/home/me/runs/a")
    assert (config.run.name, config.data.cache) == ("~/b", "a/~/c")


def test_the_runs_folder_follows_its_name_by_default() -> None:
    assert load("train", [*TEXT, "run.name=a b"]).run.dir == "runs/a b"
    assert load("train", [*TEXT, "run.name=${x}"]).run.dir == "runs/${x}"


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        (
            "backbone.special_tokens=[<unused5>,<unused6>,<unused7>]",
            "backbone.special_tokens",
            ["<unused5>", "<unused6>", "<unused7>"],
        ),
        ("backbone.special_tokens=[<|a|>, <|b|>,'c, d']", "backbone.special_tokens", ["<|a|>", "<|b|>", "c, d"]),
        ("backbone.special_tokens=null", "backbone.special_tokens", None),
        ("optimizer.betas=[0.8,0.99]", "optimizer.betas", [0.8, 0.99]),
        ("train.profile_steps=[2,3]", "train.profile_steps", [2, 3]),
        ("+optimizer.lr=1e-4", "optimizer.lr", 1e-4),
        ("++optimizer.lr=2", "optimizer.lr", 2.0),
        ("train.deterministic=true", "train.deterministic", True),
        ("data.prompts=[' a, b',c]", "data.prompts", [" a, b", "c"]),
        ("loss.weight.t2i=2", "loss.weight", {"t2i": 2.0}),
        ("loss.weight={t2i: 2, text: 3}", "loss.weight", {"t2i": 2.0, "text": 3.0}),
        ("backbone.architecture.tie_word_embeddings=false", "backbone.architecture.tie_word_embeddings", False),
        (
            "backbone.architecture.rope_scaling={rope_type: yarn, factor: 4.0}",
            "backbone.architecture.rope_scaling",
            {"rope_type": "yarn", "factor": 4.0},
        ),
        ("parallel.attention=rectangles", "parallel.attention", "padded_sdpa"),
        ("optimizer._target_=my_module.Lion", "optimizer.kind", "my_module.Lion"),
    ],
)
def test_values_by_the_type_of_their_key(override: str, key: str, value: Any, own_module: None) -> None:
    found: Any = load("train", [*TEXT, override])
    for part in key.split("."):
        found = found[part] if isinstance(found, dict) else getattr(found, part)
    assert found == value and type(found) is type(value)


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's module that can be imported."""
    (tmp_path / "my_module.py").write_text("import torch\n\n\nclass Lion(torch.optim.SGD):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_module", raising=False)


def test_what_stands_next_to_target_and_is_no_setting_is_an_argument_of_ones_own_kind(own_module: None) -> None:
    config = load("train", [*TEXT, "optimizer={_target_: my_module.Lion, momentum: 0.8, lr: 0.1}"])
    assert (config.optimizer.kind, config.optimizer.lr, config.optimizer.options) == (
        "my_module.Lion",
        0.1,
        {"momentum": 0.8},
    )


def test_a_key_is_taken_away_and_a_section_is_taken_away() -> None:
    config = load("train", ["experiment=quickstart", "~data.sources", "~data.heldout", *TEXT])
    assert list(config.data.sources) == ["a"] and config.data.heldout == {}
    assert "i2t" not in load("train", ["experiment=quickstart", "~data.sources.i2t"]).data.sources


BAD = {
    "optimizer.grad_clip=-1": "optimizer.grad_clip=-1: must be above 0",
    "optimizer.weight_decay=-0.1": "optimizer.weight_decay=-0.1: must be 0 or more",
    "optimizer.betas=[0.9]": "optimizer.betas=[0.9]: must have 2 or more entries, not 1",
    "optimizer.betas=[0.9,1]": "optimizer.betas.1=1: must be below 1",
    "optimizer.lr=nan": "optimizer.lr=nan: must be a finite number",
    "schedule.min_lr=-1": "schedule.min_lr=-1: a share between 0 and 1",
    "loss.z_loss=-1": "loss.z_loss=-1: between 0 and 10",
    "loss.weight.text=-10": "loss.weight.text=-10: between 0 and 1e+06",
    "loss.weight.text=0": "loss.weight: the weight of every task of data.sources is 0 (text)",
    "backbone.tokenizer_size=1000000000": "backbone.tokenizer_size=1000000000: between 262 and 1e+06",
    "optimizer.new_rows_steps=5": "optimizer.new_rows_steps=5 needs backbone.init=pretrained",
    "data.global_batch=100000000": "data.global_batch=100000000: between 1 and 1e+06",
    "data.streams=1000000000": "data.streams=1000000000: between 1 and 1e+06",
    "train.hang_timeout=1e300": "train.hang_timeout=1e300: between 1 and 1e+06",
    "optimizer.eps=1e300": "optimizer.eps=1e300: must be at most 1",
    "loss.z_loss=1e30": "loss.z_loss=1e30: between 0 and 10",
    "backbone.tokenizer_size=1": "backbone.tokenizer_size=1: between 262 and 1e+06",
    "data.seq_len=1": "data.seq_len=1: between 2 and 1e+07",
    "optimizer.weight_decay=1e30": "optimizer.weight_decay=1e+30: times optimizer.lr=0.003 it takes away more than",
    "optimizer.image_embedding_lr_scale=1e30": "optimizer.image_embedding_lr_scale=1e30: between 0 and 1000",
    "train.max_skipped=0": "train.max_skipped=0: must be 1 or more",
    "train.tokens=4096": "train.steps=1 and train.tokens=4096: give one of them, and null for the other",
    "train.steps=1.5": "train.steps=1.5: must be a whole number, or null",
    "train.steps=many": "train.steps=many: must be a whole number",
    "train.deterministic=maybe": "train.deterministic=maybe: must be true or false",
    "schedule.kind=linaer": "schedule.kind=linaer: one of cosine, constant, wsd",
    "run.dir=": "run.dir is empty; give a path",
    "data.cache=": "data.cache is empty; give a path, or null: none",
    "data.sources.a.wieght=2": "data.sources.a.wieght: no such key; did you mean data.sources.a.weight?",
    "optimzer.lr=1": "optimzer.lr: no such key; did you mean optimizer.lr?",
    "optimizer=adamv": "optimizer=adamv: no such config; did you mean adamw?; one of adamw",
    "optimizer.betas=0.9": "optimizer.betas=0.9: must be a list, such as [a,b]",
    "seed.x=1": "seed.x: no such key",
    "~seed.x": "seed.x: no such key",
    "seed": "seed: not KEY=VALUE",
    "data=": "data",
    "--sed": "--sed: no such flag",
    "parallel.shard=0": "parallel.shard=0: must be 1 or more, or -1",
    "data.sources.a=x": "data.sources.a=x: a section of keys; give data.sources.a.KEY=VALUE",
    "hydra.run.dr=x": "hydra.run.dr",
    "experiment=liquid": "experiment=liquid: no such config",
    "backbone=null": "backbone=null: no such config; one of folder",
    "backbone=": "backbone=: no such config; one of folder",
    "run.name=": "run.name=: must not be empty",
    "run.name=..": "run.name=..: not a name",
    "run.name=???": "run.name=???: stands for a value that is missing",
    "seed=99999999999999999999999": "seed=99999999999999999999999: between 0 and",
    "optimizer.lr=1e300": "optimizer.lr=1e300: must be at most 100",
    "optimizer.kind=os.path": "optimizer.kind=os.path: not a class or function",
    "train={steps": "train={steps: a section of keys; give train.KEY=VALUE",
    "train={steps: [}": "train={steps: [}: cannot be read; write it as",
    ".=1": ".=1: no such key",
    "data.sources..path=x": "data.sources..path=x: no such key",
    "hydra.sweep.dir=[": "hydra.sweep.dir=[: no viable alternative",
}


@pytest.mark.parametrize("override", [o for o in BAD if o != "data="])
def test_what_is_wrong_is_one_line_with_the_key_the_value_and_what_would_be_right(override: str) -> None:
    with pytest.raises(UserError) as caught:
        load("train", [*TEXT, override])
    assert BAD[override] in str(caught.value) and "\n" not in str(caught.value)


def test_several_mistakes_are_told_together() -> None:
    with pytest.raises(UserError, match=r"optimizer\.lr=-1: must be above 0 \(and 1 more: schedule\.kind=x"):
        load("train", [*TEXT, "optimizer.lr=-1", "schedule.kind=x"])


def test_wsd_needs_room_for_both_ends() -> None:
    with pytest.raises(UserError, match=r"schedule\.warmup=0\.6 and schedule\.decay=0\.6: more than the whole run"):
        load("train", [*TEXT, "schedule=wsd", "schedule.warmup=0.6", "schedule.decay=0.6"])


@pytest.mark.parametrize(
    "text", ["{vqa: 2, i2t: 1e-1}", "{vqa:2,i2t:1e-1}", "{vqa:2, i2t: 1e-1}", "{'vqa':2,i2t:'0.1'}"]
)
def test_a_dictionary_may_be_written_as_yaml_or_as_hydra_writes_it(text: str) -> None:
    assert load("train", [*TEXT, f"loss.weight={text}"]).loss.weight == {"vqa": 2.0, "i2t": 0.1}


def test_a_url_in_a_dictionary_keeps_its_colon() -> None:
    config = load("train", [*TEXT, "data.sources.b={path:s3://a/b:c,task:text,weight:2}"])
    assert config.data.sources["b"].path == "s3://a/b:c" and config.data.sources["b"].weight == 2
    nested = load("train", [*TEXT, "data.sources={b:{path:x,task:text}}"]).data.sources["b"]
    assert (nested.path, nested.task) == ("x", "text")


def test_tensor_parallel_ranks_share_every_sequence() -> None:
    keys = [*TEXT, "parallel.tensor=4", "data.seq_len=1026"]
    with pytest.raises(UserError, match=r"data\.seq_len=1026: must be a multiple of parallel\.tensor=4"):
        load("train", keys)
    assert load("train", [*keys, "parallel.sequence=false"]).data.seq_len == 1026


def test_train_alone_means_no_demo() -> None:
    with pytest.raises(UserError, match=r"data\.sources is empty; choose a mixture with data=NAME"):
        load("train", [])


def test_own_configs_in_conf_and_in_a_folder_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf" / "optimizer").mkdir(parents=True)
    (tmp_path / "conf" / "optimizer" / "slow.yaml").write_text("# @package optimizer\nlr: 1.0e-5\n")
    other = tmp_path / "my (own), ${configs}"
    (other / "experiment").mkdir(parents=True)
    (other / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /optimizer: slow\nseed: 7\nrun: {dir: 'out/${run.name}'}\n"
    )
    config = load("train", [*TEXT, "experiment=mine", "--config-dir", str(other)])
    assert (config.seed, config.optimizer.lr, config.run.dir) == (7, 1e-5, "out/default")
    with pytest.raises(UserError, match="--config-dir nowhere: no such folder"):
        load("train", ["--config-dir=nowhere"])


def test_conf_of_the_checkout_is_not_searched_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(conf_dir().parent)
    from liquid_train.config.compose import search_path

    assert search_path(CommandLine()) == [conf_dir()]


def test_torchrun_takes_what_liquid_train_takes(tmp_path: Path) -> None:
    """The same reading of the same words: a key that Hydra would refuse, text with its special characters."""
    arguments = [*TEXT, "run.dir=a=b, (c) ${d}", "loss.weight.text=2", "data.prompts=[<a>,<b>,<c>]"]
    torchrun = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    done = subprocess.run(
        [*torchrun, "-m", "liquid_train.train", *arguments], cwd=tmp_path, env=ENV, capture_output=True, text=True
    )
    assert done.returncode != 0 and "data.sources.a.path=set: set: no such folder" in done.stderr, done.stderr


def test_no_setting_of_conf_repeats_the_default_of_the_schema() -> None:
    """conf/ holds what differs: `kind` names what a group is, and a section that groups choose may say so again."""
    import yaml

    from liquid_train.config.compose import job_schema
    from liquid_train.config.schema_walk import find_setting

    repeated = []
    for path in sorted(conf_dir().rglob("*.yaml")):
        if "experiment" in path.parts or "sheet" in path.parts:  # on top of groups, whose values differ
            continue
        text = path.read_text()
        package = text.partition("# @package ")[2].partition("\n")[0].strip()
        prefix = "" if package in ("", "_global_") else f"{package}."
        for key, value in leaves(yaml.safe_load(text) or {}):
            item = find_setting(job_schema("train"), prefix + key)
            if item is not None and item.section is None and item.default == value and "architecture" not in key:
                repeated.append(f"{path.relative_to(conf_dir())}: {key}")
    allowed = {"kind", "shard", "wandb.mode", "every", "config", "checkpoint"}
    assert [r for r in repeated if r.partition(": ")[2] not in allowed and not r.endswith(".weight")] == []


def leaves(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted key, value) of everything but the defaults list."""
    found = []
    for key, value in values.items():
        if key != "defaults":
            found += leaves(value, f"{prefix}{key}.") if isinstance(value, dict) and value else [(prefix + key, value)]
    return found


def test_an_installed_conf_needs_no_checkout(tmp_path: Path) -> None:
    """As in the wheel, where conf/ lies inside the package."""
    package = tmp_path / "liquid_train"
    shutil.copytree(
        conf_dir().parent / "liquid_train", package, ignore=shutil.ignore_patterns("__pycache__", "weights")
    )
    shutil.copytree(conf_dir(), package / "conf")
    code = "from liquid_train.config.compose import conf_dir; print(conf_dir())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=ENV | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == str(package / "conf"), done.stderr


def test_a_dictionary_for_a_section_changes_its_keys_and_no_others() -> None:
    config = load("train", ["experiment=quickstart", "train={steps: 3}", "run={name: 2024_01}"])
    assert (config.train.steps, config.train.micro_batch) == (3, 2)
    assert (config.run.name, config.run.dir) == ("2024_01", "runs/2024_01")


def test_what_stands_in_braces_is_read_by_the_type_of_its_key_too() -> None:
    config = load("train", ["data.sources.b={path: 1.10, task: text, weight: 2}", "train.steps=1"])
    assert (config.data.sources["b"].path, config.data.sources["b"].weight) == ("1.10", 2.0)
    parts = '[{question: "is it {x}?", answer: yes}]'
    config = load("train", [*TEXT, "evals.vqascore.pattern=(?P<x>a)", f"evals.vqascore.parts={parts}"])
    assert config.evals.vqascore.parts[0].answer == "yes"


def test_a_removed_setting_goes_back_to_its_default() -> None:
    config = load("train", ["experiment=quickstart", "~run.dir", "~optimizer.lr", "~train.spike", "run.name=x"])
    assert (config.run.dir, config.optimizer.lr, config.train.spike.window) == ("runs/x", 3e-3, 128)


def test_arguments_of_ones_own_kind_are_read_as_yaml_reads_them(own_module: None) -> None:
    config = load("train", [*TEXT, "optimizer._target_=my_module.Lion", "optimizer.momentum=0.95"])
    assert config.optimizer.options == {"momentum": 0.95}


def test_a_group_may_be_chosen_with_a_plus_in_front() -> None:
    assert load("train", [*TEXT, "+backbone=tiny-llama", "++schedule=wsd"]).schedule.kind == "wsd"
