"""The command line as a user meets it: one clear line for every mistake, no traceback, nothing half-written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from liquid_train.cli import main
from liquid_train.config.compose import load
from tests.shard_sets import image_set, mixture_overrides


def liquid(*args: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.run(
        [sys.executable, "-m", "liquid_train.cli", *args], capture_output=True, text=True, cwd=cwd, env=env, timeout=240
    )


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    root = tmp_path_factory.mktemp("cli")
    return root, ["train", "experiment=quickstart", *mixture_overrides(root)]


BAD_TRAIN = {
    "missing shard folder": (
        ["data.sources.t2i.path=nowhere"],
        "data.sources.t2i.path=nowhere: nowhere: no such folder",
    ),
    "no config.json": (["backbone=folder", "backbone.path=."], "backbone.path=.: no config.json"),
    "misspelt key": (["train.stpes=5"], "train.stpes: no such key; did you mean train.steps?"),
    "misspelt source key": (["data.sources.t2i.wieght=5"], "wieght"),
    "mistyped value": (["train.steps=many"], "train.steps=many: must be a whole number"),
    "steps=0": (["train.steps=0"], "train.steps=0: must be 1 or more"),
    "more ranks than streams": (["launch.nproc=5"], "launch.nproc=5: more data-parallel ranks than data.streams=4"),
    "unknown group choice": (["backbone=huge"], "backbone=huge: no such config; one of folder"),
    "unknown choice": (["parallel.precision=fp8"], "parallel.precision=fp8: one of bf16, fp32"),
    "resume from nothing": (["checkpoint.resume=nowhere"], "checkpoint.resume=nowhere"),
    "negative share": (["data.unconditional=-0.1"], "data.unconditional=-0.1"),
    "unknown task": (["data.sources.t2i.task=t3i"], "data.sources.t2i.task=t3i: no such task; one of chat"),
}


@pytest.mark.parametrize("name", BAD_TRAIN)
def test_bad_training_input(name: str, mixture: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    root, base = mixture
    overrides, message = BAD_TRAIN[name]
    assert main([*base, *overrides]) == 2
    out, err = capsys.readouterr()
    assert message in err and len(err.strip().splitlines()) == 1 and "Traceback" not in err
    assert not (root / "run").exists()


def test_shards_of_another_vq(mixture: tuple[Path, list[str]], tmp_path: Path) -> None:
    root, base = mixture
    other = image_set(tmp_path / "other", samples=4, fingerprint="0" * 64)
    done = liquid(
        *base, f"data.sources.t2i.path={other}", "train.steps=2", "launch.nproc=2", f"run.dir={tmp_path / 'run'}"
    )
    assert done.returncode == 2 and "codes of another VQ" in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2 and not (tmp_path / "run").exists()


def test_a_damaged_shard_is_named(
    mixture: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, base = mixture
    cut = image_set(tmp_path / "cut", samples=4)
    tar = cut / "shard-00000.tar"
    tar.write_bytes(tar.read_bytes()[:-512])
    assert main([*base, f"data.sources.vqa.path={cut}"]) == 2
    assert "shard-00000.tar" in capsys.readouterr().err


MISTAKES = [
    ["launch"],
    ["run", "status"],
    ["run", "report", "nowhere"],
    ["checkpoint", "list", "nowhere"],
    ["generate", "checkpoint=nowhere", "prompt=x"],
]


@pytest.mark.parametrize("args", MISTAKES)
def test_other_mistakes(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 2
    err = capsys.readouterr().err
    assert len(err.strip().splitlines()) == 1 and err.startswith(f"liquid {args[0]}: ")


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; from liquid_train.cli import main; main(['--help']); main(['train', '--help']); assert "
        "'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    assert "liquid run report" in done.stdout and "train.micro_batch" in done.stdout


@pytest.mark.parametrize(
    "text", ["a dog's bowl, red", 'say "hi" {now}', "a=b, c: [d]", "plain", "back\\slash", "50% $x"]
)
def test_free_text_reaches_the_job(text: str) -> None:
    assert load("generate", ["checkpoint=x", f"prompt={text}"]).prompt == text
