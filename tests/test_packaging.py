"""What a user installs and the commands of the quickstart: the wheel's content, the pins, the Makefile, the ignored
files."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import liquid_train
from data_prep.sources.easy_vqa import COLORS, SHAPES
from liquid_train.config import compose as config

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (path,) = folder.glob("liquid_train-*.whl")
    return zipfile.ZipFile(path)


def source_files(folder: str) -> set[str]:
    """Files of a source folder as they should appear in the wheel."""
    return {
        p.relative_to(ROOT).as_posix()
        for p in (ROOT / folder).rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    }


def test_the_wheel_has_code_configs_weights_and_template_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    code = source_files("liquid_train") | source_files("data_prep") | source_files("evals")
    configs = {f"liquid_train/{name}" for name in source_files("conf")}
    assert names == code | configs
    assert {
        "liquid_train/conf/train.yaml",
        "liquid_train/conf/prompt_files/easy_vqa.txt",
        "liquid_train/data/shards.py",
    } <= names
    assert {"liquid_train/report/template.html", "liquid_train/weights/vq_easy/model.safetensors"} <= names
    assert {f"{package}/py.typed" for package in ("liquid_train", "data_prep", "evals")} <= names


def test_an_unpacked_wheel_finds_its_own_configs(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path / "site")
    code = (
        "from liquid_train.config.compose import conf_dir, load; print(conf_dir()); load('tokenize', "
        "['tokenize.source=easy_vqa', "
        "'tokenize.output=x'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        check=True,
        capture_output=True,
    )
    assert Path(done.stdout.decode().strip()) == tmp_path / "site" / "liquid_train" / "conf"


def test_the_wheel_states_its_command_and_extras(wheel: zipfile.ZipFile) -> None:
    (info,) = {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
    assert "liquid = liquid_train.cli:main" in wheel.read(f"{info}/entry_points.txt").decode()
    metadata = Parser().parsestr(wheel.read(f"{info}/METADATA").decode())
    assert (metadata["Name"], metadata["Requires-Python"]) == ("liquid-train", ">=3.11")
    assert metadata["Version"] == liquid_train.__version__
    assert set(metadata.get_all("Provides-Extra", [])) == {
        "gpu",
        "language",
        "peft",
        "ui",
        "remote",
        "parquet",
        "demo",
        "bench",
        "dev",
    }


def test_every_requirement_is_pinned_and_its_pin_is_allowed() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    pins: dict[str, str] = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    assert not any("+" in version for version in pins.values()), "a local version exists on one machine only"
    assert pins["torch"] == "2.13.0"
    extras = PROJECT["optional-dependencies"]
    for requirement in map(Requirement, [*PROJECT["dependencies"], *extras["demo"], *extras["dev"]]):
        name = canonicalize_name(requirement.name)
        assert name in pins, name
        assert requirement.specifier.contains(pins[name]), f"{requirement}, pinned {pins[name]}"


def test_what_jobs_write_is_ignored_and_source_code_is_not() -> None:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")

    def ignored(path: str) -> bool:
        return subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT).returncode == 0

    for path in (
        "runs/quickstart/config.yaml",
        "data/quickstart/index.json",
        ".venv/bin/python",
        "tests/__pycache__/x.pyc",
        "pictures/00000.png",
    ):
        assert ignored(path), path
    for path in (
        "liquid_train/data/shards.py",
        "liquid_train/weights/vq_easy/model.safetensors",
        "conf/data/easy_vqa.yaml",
        "data_prep/sources.py",
    ):
        assert not ignored(path), path


def test_make_alone_prints_every_target() -> None:
    shown = subprocess.run(["make"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert set(re.findall(r"^  make ([a-z-]+)", shown, flags=re.M)) == {
        "help",
        "install",
        "quickstart",
        "quickstart-long",
        "test",
        "test-fast",
        "test-slow",
        "lint",
        "format",
        "bench",
        "gpu-check",
    }


def quickstart_commands(folder: Path, experiment: str | None, fail_at: str = "none") -> tuple[int, list[list[str]]]:
    """Run launch/quickstart.sh with a `liquid` that only writes down its arguments, and fails at one job."""
    (folder / "bin").mkdir()
    fake = folder / "bin" / "liquid"
    fake.write_text(
        f'#!/usr/bin/env bash\nprintf "%s\\t" "$@" >> {folder}/calls; echo >> {folder}/calls\n[ "$1" != {fail_at} ]\n'
    )
    fake.chmod(0o755)
    environment = {key: value for key, value in os.environ.items() if key != "EXPERIMENT"} | {
        "PATH": f"{folder}/bin:{os.environ['PATH']}"
    }
    if experiment:
        environment["EXPERIMENT"] = experiment
    status = subprocess.run([ROOT / "launch" / "quickstart.sh"], cwd=folder, env=environment).returncode
    return status, [line.rstrip("\t").split("\t") for line in (folder / "calls").read_text().splitlines()]


@pytest.mark.parametrize(
    ("experiment", "run"), [(None, "runs/quickstart"), ("quickstart_long", "runs/quickstart_long")]
)
def test_the_quickstart_runs_every_job_on_one_run(tmp_path: Path, experiment: str | None, run: str) -> None:
    status, calls = quickstart_commands(tmp_path, experiment)
    assert status == 0
    assert [call[0] for call in calls] == ["tokenize", "data"] + ["tokenize"] * 3 + ["train", "eval", "generate", "run"]
    assert calls[-1] == ["run", "report", run]
    for call in calls[:-1]:  # every key exists and has a valid value
        if call[0] == "data":
            continue  # a tool: no config
        settings = config.load(call[0], list(call[1:]))
        if call[0] == "tokenize":
            assert settings.tokenize.output.startswith("data/quickstart/") and ("test" in settings.tokenize.output) == (
                settings.tokenize.split == "test"
            )
        elif call[0] == "train":
            assert settings.run.dir == run
            assert {s.path for s in (*settings.data.sources.values(), *settings.data.heldout.values())} == {
                (c[-1] if c[0] == "data" else c[-1].split("=")[1]) for c in calls[:5]
            }
            assert all(s.path.endswith("-train") for s in settings.data.sources.values()), (
                "test data must not reach training"
            )
        else:
            assert settings.checkpoint == run


def test_the_quickstart_stops_at_the_first_failure(tmp_path: Path) -> None:
    status, calls = quickstart_commands(tmp_path, None, fail_at="train")
    assert status != 0 and calls[-1][0] == "train"


def test_the_prompts_name_every_colour_and_shape_once() -> None:
    lines = (ROOT / "conf" / "prompt_files" / "easy_vqa.txt").read_text().splitlines()
    assert len(lines) == 24 and set(lines) == {f"a {color} {shape}" for color in COLORS for shape in SHAPES}
