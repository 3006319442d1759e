"""--help, --cfg, --version and shell completion."""

from __future__ import annotations

import subprocess

import pytest
import yaml

from liquid_train import __version__
from liquid_train.cli import main
from liquid_train.config.compose import job_schema
from liquid_train.config.schema_walk import walk
from liquid_train.jobs import JOBS


@pytest.mark.parametrize("job", JOBS)
def test_every_setting_of_every_job_is_explained(job: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([job, "--help"]) == 0
    page = capsys.readouterr().out
    for key, item in walk(job_schema(job)):
        if item.section is None:
            assert f"  {key}  (" in page and item.help, key
        if item.optional and item.section is None:
            assert item.null, f"{key}: what null means is not said"
    assert max(len(line) for line in page.splitlines()) < 200


def test_one_key_and_one_section(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help", "optimizer.lr"]) == 0
    assert (
        capsys.readouterr().out == "  optimizer.lr  (number, > 0 and <= 100, default 0.003)\n      peak learning rate\n"
    )
    assert main(["train", "experiment=quickstart", "--help", "backbone"]) == 0
    page = capsys.readouterr().out
    assert "backbone.init  (random | pretrained, default random)" in page and "qwen2.5-0.5b" in page
    assert main(["train", "--help", "optimizer.rl"]) == 2
    assert "optimizer.rl: no such key; did you mean optimizer.lr?" in capsys.readouterr().err


def test_cfg_prints_the_config_that_would_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "experiment=quickstart", "optimizer.lr=1e-4", "--cfg"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["optimizer"]["lr"] == 1e-4 and config["data"]["global_batch"] == 4
    assert main(["train", "--cfg"]) == 2 and "data.sources is empty" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0 and capsys.readouterr().out == f"liquid {__version__}\n"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("liquid tok", ["tokenize"]),
        ("liquid train optimizer=", ["adamw", "muon"]),
        ("liquid train parallel.precision=b", ["bf16"]),
        ("liquid train train.deterministic=", ["true", "false"]),
        ("liquid train schedule.wa", ["schedule.warmup="]),
        ("liquid run re", ["report", "replay"]),
        ("liquid generate checkpoint=", []),  # a path: left to the shell
        ("liquid nothing x", []),
    ],
)
def test_completion(line: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--complete", line]) == 0
    assert capsys.readouterr().out.split() == words


def test_the_scripts_are_shell(capsys: pytest.CaptureFixture[str]) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert main(["--completion", shell]) == 0
    assert main(["--completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
    assert main(["--completion", "tcsh"]) == 2
