"""What ends a job: a user's mistake in one line with exit status 2, a bug with its traceback and 1; and where nothing
can be written, that is said before the work."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from liquid_train.cli import main
from liquid_train.errors import UserError
from liquid_train.files import check_file, check_folder, concerns, naming, writing
from tests.shard_sets import mixture_overrides
from tests.tiny_model import save

ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
MAIN = "import sys; from liquid_train.cli import main; status = main(sys.argv[1:]); "
# a folder that cannot be written to while the command runs, also for root, whom permissions do not stop
READ_ONLY = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step, the sets it was trained on, a set of texts with its source, and a file to lie below."""
    folder = tmp_path_factory.mktemp("errors")
    overrides = ["experiment=quickstart", *mixture_overrides(folder), "train.steps=1", "evals.every=0"]
    (folder / "overrides.json").write_text(json.dumps(overrides))
    assert main(["train", *overrides, "launch.nproc=1", "tracker.progress=false"]) == 0
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": f"text {n}"}) + "\n" for n in range(8)))
    assert main(tokenize(folder, folder / "set")) == 0
    save(folder / "model")
    (folder / "file").write_text("x")
    (folder / "link").symlink_to(folder / "nothing")
    return folder


def tokenize(root: Path, output: Path) -> list[str]:
    keys = [f"input={root / 'texts.jsonl'}", f"output={output}", "source=text", "progress=false"]
    return ["tokenize", *(f"tokenize.{key}" for key in keys)]


def evaluate(root: Path, *overrides: str) -> list[str]:
    keys = [f"shards={root / 'images'}", "train_shards=null", "metrics=[vqa]", "max_images=2", "device=cpu"]
    return ["eval", *keys, *overrides]


def command(job: str, root: Path, output: Path) -> list[str]:
    """A job that writes to `output`."""
    training = json.loads((root / "overrides.json").read_text())[:-1]
    generate = ["generate", f"checkpoint={root / 'model'}", "device=cpu", f"output={output}"]
    png = str(output / "image.png")
    return {
        "train": ["train", *training, f"run.dir={output}", "launch.nproc=1"],
        "train, two ranks": ["train", *training, f"run.dir={output}", "launch.nproc=2"],
        "generate": [*generate, "prompt=a red circle"],
        "eval": evaluate(root, f"checkpoint={root / 'model'}", f"output={output}"),
        "tokenize": tokenize(root, output),
        "export": ["checkpoint", "export", str(root / "model"), str(output)],
        "report": ["run", "report", str(root / "run"), "--output", str(output / "report.html")],
        "replay": ["run", "replay", str(root / "run"), "--step", "1", "--output", str(output)],
        "merge": ["data", "merge", str(output), str(root / "set")],
        "verify": ["data", "verify", str(root / "images"), "--sheet", png],
        "describe": ["data", "describe", str(root / "images"), "--plot", png],
        "inspect": ["data", "inspect", str(root / "images"), "--decode", png],
        "preview": ["data", "inspect", *training, "--images", png],
    }[job]


JOBS = {
    "train": "run.dir=",
    "train, two ranks": "run.dir=",
    "generate": "output=",
    "eval": "output=",
    "tokenize": "tokenize.output=",
    "export": "OUTPUT ",
    "report": "--output ",
    "replay": "--output ",
    "merge": "OUTPUT ",
    "verify": "--sheet ",
    "describe": "--plot ",
    "inspect": "--decode ",
    "preview": "--images ",
}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("place", ["file/below", "file", "link", "link/below"])
def test_an_output_that_cannot_be_made(job: str, place: str, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Below a file, where a file is, after a link to nothing."""
    before = names(root)
    assert main(command(job, root, root / place)) == 2
    err = capsys.readouterr().err
    exists = (job, place) == ("export", "file")  # said as of any file or folder that is there
    assert len(err.strip().splitlines()) == 1 and f"{'' if exists else JOBS[job]}{root / place}" in err, err
    assert "exists already" in err if exists else "a file" in err or "a link to nothing" in err
    assert names(root) == before and not (root / "nothing").exists()


@pytest.mark.parametrize("job", ["generate", "eval", "tokenize"])
def test_it_is_said_before_anything_heavy_is_imported(job: str, root: Path) -> None:
    code = f"{MAIN} assert 'torch' not in sys.modules; sys.exit(status)"
    arguments = [sys.executable, "-c", code, *command(job, root, root / "file")]
    done = subprocess.run(arguments, env=ENV, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "a file" in done.stderr, done.stderr


def read_only(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command while `folder` cannot be written to; skips where that cannot be had."""
    inner = [sys.executable, "-m", "liquid_train.cli", *arguments]
    outer = ["unshare", "-m", "bash", "-c", READ_ONLY, str(folder)]
    if subprocess.run([*outer, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no read-only mount can be made here")
    return subprocess.run([*outer, *inner], env=ENV, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("job", ["train", "generate", "eval", "tokenize", "export", "report", "replay", "merge"])
def test_an_output_on_a_read_only_disk(job: str, root: Path, tmp_path: Path) -> None:
    done = read_only(tmp_path, *command(job, root, tmp_path / "output"))
    errors = done.stderr.strip().splitlines()
    assert done.returncode == 2 and len(errors) == 1 and "Traceback" not in done.stderr, done.stderr
    assert f"{JOBS[job]}{tmp_path / 'output'}" in errors[0] and "Read-only file system" in errors[0]


def test_tars_on_a_read_only_disk_are_not_read_for_an_index(root: Path, tmp_path: Path) -> None:
    shutil.copy(next((root / "images").glob("*.tar")), tmp_path / "a.tar")
    done = read_only(tmp_path, "data", "index", str(tmp_path))
    errors = done.stderr.strip().splitlines()
    assert done.returncode == 2 and len(errors) == 1, done.stderr  # "tars are read once" would be another line
    assert f"{tmp_path}: cannot be written to: Read-only file system" in errors[0] and "index a copy" in errors[0]


def test_a_read_only_run_is_reported_and_evaluated_elsewhere(root: Path, tmp_path: Path) -> None:
    """Of a colleague: the summary comes all the same, and the message says how to get the rest."""
    run = root / "run"
    shown = read_only(run, "run", "report", str(run))
    assert shown.returncode == 2 and "Training, finished" in shown.stdout and "Traceback" not in shown.stderr
    assert f"{run / 'report.html'}: cannot be written to: Read-only file system" in shown.stderr
    assert "--output FILE.html" in shown.stderr and len(shown.stderr.strip().splitlines()) == 1
    page = tmp_path / "pages" / "report.html"
    assert read_only(run, "run", "report", str(run), "--output", str(page)).returncode == 0 and page.is_file()
    refused = read_only(run, *evaluate(root, f"checkpoint={run}"))
    assert refused.returncode == 2 and len(refused.stderr.strip().splitlines()) == 1, refused.stderr
    assert f"checkpoint={run}, whose evals/: cannot be written to" in refused.stderr and "output=DIR" in refused.stderr
    done = read_only(run, *evaluate(root, f"checkpoint={run}", f"output={tmp_path / 'evals'}"))
    assert done.returncode == 0 and (tmp_path / "evals" / "vqa.json").is_file(), done.stderr
    watched = read_only(run, *evaluate(root, f"watch={run}"))
    assert watched.returncode == 2 and len(watched.stderr.strip().splitlines()) == 1, watched.stderr


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(mounted, capture_output=True, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=False)


def fill(disk: Path, leave: int = 0) -> None:
    state = os.statvfs(disk)
    (disk / "ballast").write_bytes(bytes(state.f_bavail * state.f_frsize - leave))


@pytest.mark.parametrize("job", ["train", "generate", "eval", "tokenize", "export", "report", "replay", "merge"])
def test_an_output_on_a_full_disk(job: str, root: Path, disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(disk)
    assert main(command(job, root, disk / "output")) == 2
    err = capsys.readouterr().err
    assert len(err.strip().splitlines()) == 1 and f"{JOBS[job]}{disk / 'output'}" in err, err
    assert "No space left on device" in err and names(disk) == ["ballast"]


def test_a_disk_that_fills_up_costs_no_image_that_was_written(
    root: Path, disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """There is room when it is tried, and none for the whole."""
    fill(disk, leave=100 * 1024)
    (root / "many.txt").write_text("a red circle\n" * 40)
    arguments = [f"checkpoint={root / 'model'}", f"prompts={root / 'many.txt'}", f"output={disk / 'output'}"]
    assert main(["generate", *arguments, "device=cpu", "size=64x64"]) == 2
    err = capsys.readouterr().err.strip()
    kept = [path for path in (disk / "output" / ".partial").glob("*.png") if not path.name.startswith(".")]
    assert kept and all(path.stat().st_size for path in kept) and len(err.splitlines()) == 1
    assert f"{len(kept)} file(s) that were written are kept in {disk / 'output' / '.partial'}" in err
    (disk / "ballast").unlink()
    assert main(["generate", *arguments, "device=cpu", "size=64x64"]) == 0
    assert len(list((disk / "output").glob("*.png"))) == 40 and not (disk / "output" / ".partial").exists()


def test_a_folder_that_is_a_mount_takes_results(root: Path, disk: Path) -> None:
    """Staged on the same file system: nothing can be moved in from outside."""
    assert main(command("generate", root, disk)) == 0 and names(disk) == ["00000.png", "index.jsonl", "manifest.json"]


def test_what_is_asked_of_a_folder_and_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    check_folder(tmp_path / "a" / "b", "key=value")
    check_file(tmp_path / "file", "key=value")
    with pytest.raises(UserError, match=r"--plot x: a folder; give the name of a file"):
        check_file(tmp_path, "--plot x")
    assert names(tmp_path) == ["file"]
    missing = tmp_path / "a" / "b"
    wanted = pytest.raises(UserError, match=r"^key=value: cannot be written to: No such file or directory; no remedy$")
    with wanted, writing(tmp_path, "key=value", "no remedy"):
        missing.write_text("x")
    with pytest.raises(FileNotFoundError), writing(tmp_path / "other", "key=value", "no remedy"):
        missing.read_text()  # of another folder
    full = OSError(28, "No space left on device")
    assert not concerns(full, tmp_path)  # of which disk?
    with (
        pytest.raises(UserError, match=r"^key=value: cannot be written to: No space left"),
        writing(tmp_path, "key=value", "x"),
    ):
        raise full
    with pytest.raises(OSError, match="No space left"), naming(tmp_path / "file"):
        raise full
    assert concerns(full, tmp_path) and not concerns(full, tmp_path / "other")


@pytest.mark.parametrize("job", ["train", "eval"])
def test_a_full_disk_of_somebody_else_is_not_run_dirs(
    job: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A class of the user's own that writes elsewhere: its error keeps its traceback."""
    (tmp_path / "thirsty.py").write_text(THIRSTY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "thirsty", raising=False)
    arguments = {
        "train": [*command("train", root, tmp_path / "run"), "optimizer.kind=thirsty.Writing", "train.steps=1"],
        "eval": evaluate(root, f"checkpoint={root / 'model'}", f"output={tmp_path / 'out'}", "metrics=[thirsty.Full]"),
    }[job]
    with pytest.raises(OSError, match="No space left") as raised:
        main(arguments)
    assert Path(raised.traceback[-1].path).name == "thirsty.py"


THIRSTY = """
import torch
from evals.metric import Metric

def full():
    raise OSError(28, "No space left on device")

class Writing(torch.optim.SGD):
    def step(self, closure=None):
        full()

class Full(Metric):
    name = "full"
    def applies(self, sets):
        pass
    def measure(self, handle, inputs):
        full()
"""

BUGS = {
    "generate": "liquid_train.generate.session.open_model",
    "eval": "liquid_train.generate.session.open_model",
    "tokenize": "data_prep.tokenize.settle_plan",
    "train": "liquid_train.train.Trainer.step",
    "export": "liquid_train.checkpoint.export._copy_weights",
    "merge": "data_prep.tools.merge._complete",
}


@pytest.mark.parametrize("job", BUGS)
def test_a_bug_is_no_mistake_of_the_user(
    job: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A ValueError that is no UserError is raised as it is."""

    def broken(*_: object, **__: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(BUGS[job], broken)
    with pytest.raises(ValueError, match="a bug") as raised:
        main(command(job, root, tmp_path / "output"))
    assert not isinstance(raised.value, UserError) and "a bug" not in capsys.readouterr().err


def test_a_bug_ends_the_command_with_its_traceback(root: Path) -> None:
    code = f"import liquid_train.report.html as html; html.read_run = None\n{MAIN} sys.exit(status)"
    (root / "run" / "report.html").unlink(missing_ok=True)
    arguments = [sys.executable, "-c", code, "run", "report", str(root / "run")]
    done = subprocess.run(arguments, env=ENV, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "TypeError: 'NoneType' object is not callable" in done.stderr
    assert "in write_report" in done.stderr


def test_no_room_for_the_model_is_one_line(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = command("train", root, tmp_path / "run")
    assert main([*arguments, "backbone.architecture.vocab_size=100000000000", "tracker.progress=false"]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "out of memory (start, tried to allocate 1" in last and "; lower train.micro_batch" in last


@pytest.mark.parametrize("mistake", [True, False])
def test_a_data_loader_s_process_raises_what_it_found(
    mistake: bool, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A user's mistake is one line; a bug keeps the worker's traceback."""

    def broken(*_: object) -> None:
        raise UserError("data.x=1: wrong: give 2") if mistake else ValueError("a bug")

    monkeypatch.setattr("liquid_train.data.packing.PackedStream.next", broken)
    arguments = [*command("train", root, tmp_path / "run"), "data.workers=1", "tracker.progress=false"]
    if mistake:
        assert main(arguments) == 2
        assert capsys.readouterr().err.strip().splitlines()[-1] == "liquid train: rank 0: data.x=1: wrong: give 2"
    else:
        with pytest.raises(ValueError, match="Original Traceback") as raised:
            main(arguments)
        assert "in broken" in str(raised.value) and not isinstance(raised.value, UserError)
