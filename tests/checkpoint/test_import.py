"""Training that begins with a model that has image rows: of a run, or published elsewhere and imported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from liquid_train.cli import main
from liquid_train.errors import UserError
from liquid_train.model.backbone import CARD
from liquid_train.training.run_vocabulary import open_vocabulary
from tests.forked import liquid
from tests.shard_sets import mixture_overrides

VQ = [
    "--vq-config",
    "package:weights/vq_easy/vqgan.yaml",
    "--vq-checkpoint",
    "package:weights/vq_easy/model.safetensors",
]
STANDS_STILL = ["train.steps=1", "optimizer.lr=1e-30", "optimizer.weight_decay=0"]


def arguments(root: Path, run: str) -> list[str]:
    mixture = [o for o in mixture_overrides(root) if not o.startswith("run.dir=")]
    return ["train", "experiment=quickstart", *mixture, "launch.nproc=1", "evals.every=0", f"run.dir={root / run}"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, and its model as others publish theirs: without liquid.json."""
    root = tmp_path_factory.mktemp("import")
    assert main([*arguments(root, "first"), "train.steps=2"]) == 0
    shutil.copytree(root / "first" / "checkpoints" / "step-00000002" / "model", root / "published")
    (root / "published" / CARD).unlink()
    return root


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_training_goes_on_from_an_imported_model(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = root / "imported"
    assert main(["checkpoint", "import", str(root / "published"), str(output), *VQ]) == 0
    assert f"liquid train backbone.path={output} backbone.init=pretrained" in capsys.readouterr().out
    first = root / "first" / "checkpoints" / "step-00000002" / "model"
    card, own = (json.loads((folder / CARD).read_text()) for folder in (output, first))
    assert {**own, "prompt": ""} == {**card, "prompt": ""}, "what is not known of it is the prompt"
    start = [f"backbone.path={output}", "backbone.init=pretrained", *STANDS_STILL]
    assert main([*arguments(root, "second"), *start]) == 0
    assert "1,024 image rows are kept" in capsys.readouterr().err
    old, new = weights(first), weights(root / "second" / "checkpoints" / "step-00000001" / "model")
    assert old.keys() == new.keys() and all(torch.equal(new[name], old[name]) for name in old)
    assert main(["plan", f"backbone.path={output}", "format=json", "parallel.shard=1"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["parameters_extended"] == sum(tensor.numel() for tensor in new.values())
    assert plan["parameters"] < plan["parameters_extended"]


def test_a_run_s_model_needs_no_import(root: Path) -> None:
    model = root / "first" / "checkpoints" / "step-00000002" / "model"
    assert main([*arguments(root, "third"), f"backbone.path={model}", "backbone.init=pretrained", *STANDS_STILL]) == 0
    old, new = weights(model), weights(root / "third" / "checkpoints" / "step-00000001" / "model")
    assert all(torch.equal(new[name], old[name]) for name in old)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "import needs a folder to write to"),
        (["out"], "import needs the VQ of the training"),
        (["out", *VQ[:2]], "import needs the VQ of the training"),
        (["out", *VQ[:3], "nowhere.ckpt"], "nowhere.ckpt"),
    ],
)
def test_what_import_refuses(root: Path, more: list[str], message: str, tmp_path: Path) -> None:
    done = liquid("checkpoint", "import", str(root / "published"), *more, cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1
    assert not any(tmp_path.iterdir())


def test_a_language_model_or_a_liquid_model_is_not_imported(root: Path, tmp_path: Path) -> None:
    first = root / "first" / "checkpoints" / "step-00000002" / "model"
    done = liquid("checkpoint", "import", str(first), str(tmp_path / "out"), *VQ)
    assert done.returncode == 2 and f"backbone.path={first} starts from it as it is" in done.stderr
    shutil.copytree(root / "published", tmp_path / "plain")
    for file in (tmp_path / "plain").glob("*.json"):
        file.write_text(file.read_text().replace("<boi>", "<other>"))
    done = liquid("checkpoint", "import", str(tmp_path / "plain"), str(tmp_path / "out"), *VQ)
    assert done.returncode == 2 and "its tokenizer has no <boi>" in done.stderr


def test_image_rows_of_another_vq_are_refused(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = root / "first" / "checkpoints" / "step-00000002" / "model"
    shutil.copytree(model, tmp_path / "other")
    card = json.loads((tmp_path / "other" / CARD).read_text()) | {"vq_fingerprint": "0" * 64}
    (tmp_path / "other" / CARD).write_text(json.dumps(card))
    start = [f"backbone.path={tmp_path / 'other'}", "backbone.init=pretrained", *STANDS_STILL]
    assert main([*arguments(root, "fourth"), *start]) == 2
    assert "its image rows are those of another VQ" in capsys.readouterr().err


def test_another_tokenizer_does_not_fit_image_rows(root: Path, tmp_path: Path) -> None:
    from liquid_train.config.compose import load
    from liquid_train.vocabulary import train_bpe

    model = root / "first" / "checkpoints" / "step-00000002" / "model"
    train_bpe(["a few words"], 270, tmp_path)
    config = load("train", [*arguments(root, "fifth")[1:], f"backbone.path={model}", "backbone.init=pretrained"])
    with pytest.raises(UserError, match="its image ids start at"):
        open_vocabulary(config, tmp_path, 1024)
