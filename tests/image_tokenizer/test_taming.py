"""The image tokenizer against the published program's answers, and the shipped small one against its promise."""

from __future__ import annotations

import enum
import json
import math
import os
import sys
import types
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from data_prep.sources.easy_vqa import load_split
from liquid_train.image_tokenizer.kinds.taming.checkpoint import Inert, read_state_dict
from liquid_train.image_tokenizer.kinds.taming.config import VQConfig
from liquid_train.image_tokenizer.kinds.taming.network import TamingVQGAN
from tests.shard_sets import WEIGHTS

REFERENCE = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "vqgan_reference"
needs_reference = pytest.mark.skipif(not REFERENCE.is_dir(), reason="no reference data next to this checkout")


def pixels(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None].float() / 127.5 - 1


@needs_reference
def test_codes_and_images_equal_the_published_program() -> None:
    model = TamingVQGAN.from_files(REFERENCE / "vqgan.yaml", REFERENCE / "vqgan.ckpt")
    for i, expected in enumerate(json.loads((REFERENCE / "codes.json").read_text())):
        codes = model.encode(pixels(REFERENCE / f"input_{i}.png"))
        assert codes.flatten().tolist() == expected["codes"]
        decoded = ((model.decode(codes).clamp(-1, 1) + 1) * 127.5).round()
        reference = ((pixels(REFERENCE / f"decoded_{i}.png") + 1) * 127.5).round()
        assert (decoded - reference).abs().max().item() <= 1


@needs_reference
def test_fingerprint_is_the_same_for_ckpt_and_safetensors(tmp_path: Path) -> None:
    state = torch.load(REFERENCE / "vqgan.ckpt", weights_only=True)["state_dict"]
    save_file(state | {"loss.discriminator": torch.ones(3)}, tmp_path / "model.safetensors")
    a = TamingVQGAN.from_files(REFERENCE / "vqgan.yaml", REFERENCE / "vqgan.ckpt")
    b = TamingVQGAN.from_files(REFERENCE / "vqgan.yaml", tmp_path / "model.safetensors", parts=("encoder",))
    assert a.fingerprint == b.fingerprint


def test_shipped_tokenizer_keeps_its_promise() -> None:
    """64 codes an image, 512 entries or more, under 2 MB, 31 dB or better on test images (a tenth of them here)."""
    model = TamingVQGAN.from_files(WEIGHTS / "vqgan.yaml", WEIGHTS / "model.safetensors")
    images = torch.cat([pixels(i.path) for i in load_split("test")[::10]])
    codes = model.encode(images)
    assert codes.shape == (100, 8, 8) and model.codebook_size >= 512 and model.downsampling == 8
    decoded = ((model.decode(codes).clamp(-1, 1) + 1) * 127.5).round()
    error = (decoded - (images + 1) * 127.5).square().mean().item()
    assert 10 * math.log10(255**2 / error) >= 31.0
    assert sum(f.stat().st_size for f in WEIGHTS.iterdir()) < 2e6


def test_any_change_of_weights_or_sizes_changes_the_fingerprint(tmp_path: Path) -> None:
    state = load_file(WEIGHTS / "model.safetensors")
    state["decoder.conv_out.bias"][0] += 1e-3
    save_file(state, tmp_path / "model.safetensors")
    shipped = TamingVQGAN.from_files(WEIGHTS / "vqgan.yaml", WEIGHTS / "model.safetensors")
    assert (
        TamingVQGAN.from_files(WEIGHTS / "vqgan.yaml", tmp_path / "model.safetensors").fingerprint
        != shipped.fingerprint
    )


def test_bad_files_are_told_in_one_message(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        TamingVQGAN.from_files(tmp_path / "none.yaml", WEIGHTS / "model.safetensors")
    (tmp_path / "bad.ckpt").write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match="cannot|not a checkpoint"):
        TamingVQGAN.from_files(WEIGHTS / "vqgan.yaml", tmp_path / "bad.ckpt")
    other = yaml.safe_load((WEIGHTS / "vqgan.yaml").read_text())
    other["model"]["params"]["n_embed"] = 512
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(other))
    with pytest.raises(ValueError, match="does not fit"):
        TamingVQGAN.from_files(tmp_path / "other.yaml", WEIGHTS / "model.safetensors")
    model = TamingVQGAN(VQConfig.from_yaml(WEIGHTS / "vqgan.yaml"))
    with pytest.raises(ValueError, match="multiples of 8"):
        model.encode(torch.zeros(1, 3, 60, 64))


SMALL = {
    "attn_resolutions": [8],
    "ch": 4,
    "ch_mult": [1, 2],
    "double_z": False,
    "dropout": 0.0,
    "in_channels": 3,
    "num_groups": 2,
    "num_res_blocks": 1,
    "out_ch": 3,
    "resolution": 16,
    "z_channels": 4,
}


def write_yaml(path: Path, ddconfig: dict, **params: object) -> Path:
    path.write_text(
        yaml.safe_dump({"model": {"params": {"n_embed": 8, "embed_dim": 4, **params, "ddconfig": ddconfig}}})
    )
    return path


def small(seed: int = 0, **changes: object) -> TamingVQGAN:
    torch.manual_seed(seed)
    return TamingVQGAN(VQConfig({**SMALL, **changes}, 8, 4))


class Callback:
    """What a training program leaves in its checkpoint: a class that is not installed where the weights are used."""

    def __init__(self) -> None:
        self.best = torch.ones(2)
        self.state = {"count": 3}


class Settings(dict):  # as Lightning's AttributeDict
    pass


class Color(enum.Enum):
    RED = 1


@dataclass
class Metadata:
    ref_type: object = Any
    resolver_cache: dict = field(default_factory=lambda: defaultdict(dict))


def run_me(path: str) -> None:
    Path(path).write_text("a checkpoint ran code")


class Runs:
    """An object whose pickle calls `function` on `argument` when it is loaded."""

    def __init__(self, function: Callable, argument: object) -> None:
        self.call = function, (argument,)

    def __reduce__(self) -> tuple:
        return self.call


def hidden(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a checkpoint with a training program's objects, then make their classes unknown: whoever looks for them
    fails."""
    program = types.ModuleType("somebodys_trainer")
    for thing in (Callback, Settings, Color, Metadata):
        monkeypatch.setattr(thing, "__module__", "somebodys_trainer")
        setattr(program, thing.__name__, thing)
    monkeypatch.setitem(sys.modules, "somebodys_trainer", program)
    settings = Settings(
        lr=1e-4, color=Color.RED, scale=np.float64(0.5), nested=Settings(a=[1, Path("x")]), meta=Metadata()
    )
    callbacks = {Callback: {"best_model_score": torch.ones(()), "monitor": "loss"}, "other": Callback()}
    extra = {"loss.discriminator.weight": torch.ones(3), "model_ema.decay": torch.ones(()), "quantize.used": np.ones(3)}
    state = {
        "state_dict": {**small().state_dict(), **extra},
        "callbacks": callbacks,
        "hyper_parameters": settings,
        "epoch": 3,
        "optimizer_states": [{}],
        "counts": Counter("aab"),
        "range": range(3),
    }
    torch.save(state, path)
    monkeypatch.delitem(sys.modules, "somebodys_trainer")


def test_a_training_programs_other_objects_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden(tmp_path / "model.ckpt", monkeypatch)
    with pytest.raises(ModuleNotFoundError):
        torch.load(tmp_path / "model.ckpt", weights_only=False)
    state = read_state_dict(tmp_path / "model.ckpt")
    assert state.keys() == small().state_dict().keys() | {"model_ema.decay"}
    assert all(torch.equal(v, state[k]) for k, v in small().state_dict().items())
    model = TamingVQGAN.from_files(write_yaml(tmp_path / "vqgan.yaml", SMALL), tmp_path / "model.ckpt")
    images = torch.rand(2, 3, 16, 24) * 2 - 1
    assert torch.equal(model.encode(images), small().encode(images))
    # for others
    assert Inert not in [
        entry[0] if isinstance(entry, tuple) else entry for entry in torch.serialization.get_safe_globals()
    ]


@pytest.mark.parametrize(
    ("name", "function"),
    [("function", run_me), ("touch", Path.touch), ("system", os.system), ("eval", eval), ("getattr", None)],
)
@pytest.mark.parametrize("place", ["next to the weights", "among the weights"])
def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, name: str, function: Callable | None, place: str) -> None:
    made = tmp_path / "made"
    arguments = {"function": str(made), "touch": made, "system": f"touch {made}", "eval": f"open({str(made)!r}, 'w')"}
    trap = Runs(function, arguments[name]) if function else Runs(getattr, Runs(run_me, str(made)))
    weights = small().state_dict()
    if place == "among the weights":
        weights["trap"] = trap  # type: ignore[assignment]
    torch.save({"state_dict": weights, "trap": trap}, tmp_path / "model.ckpt")
    try:
        state = read_state_dict(tmp_path / "model.ckpt")
    except ValueError as error:
        assert name in ("system", "touch") and "read safely" in str(error)
    else:
        assert state.keys() == small().state_dict().keys() and all(
            torch.equal(v, state[k]) for k, v in small().state_dict().items()
        )
    assert not made.exists()
    if name in ("function", "system", "eval"):  # the trap is one
        torch.load(tmp_path / "model.ckpt", weights_only=False)
        assert made.exists()


def test_old_files_and_files_that_hold_no_weights(tmp_path: Path) -> None:
    torch.save({"state_dict": small().state_dict()}, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    assert read_state_dict(tmp_path / "old.ckpt").keys() == small().state_dict().keys()
    made = tmp_path / "made"
    torch.save(
        {"state_dict": small().state_dict(), "trap": Runs(run_me, str(made))},
        tmp_path / "trap.ckpt",
        _use_new_zipfile_serialization=False,
    )
    with pytest.raises(ValueError, match="vq.checkpoint=.*trap.ckpt: not a checkpoint that can be read safely"):
        read_state_dict(tmp_path / "trap.ckpt")
    assert not made.exists()
    torch.save([torch.ones(3)], tmp_path / "list.ckpt")
    torch.save({"state_dict": Runs(run_me, str(made))}, tmp_path / "call.ckpt")
    for name in ("list.ckpt", "call.ckpt"):
        with pytest.raises(ValueError, match=f"vq.checkpoint=.*{name}: holds no state_dict"):
            read_state_dict(tmp_path / name)
    save_file(small().state_dict(), tmp_path / "model.safetensors")
    whole = (tmp_path / "model.safetensors").read_bytes()
    torch.save({"state_dict": small().state_dict()}, tmp_path / "model.ckpt")
    for name, content in (
        ("cut.safetensors", whole[:-100]),
        ("html.safetensors", b"<html>"),
        ("empty.safetensors", b""),
        ("empty.ckpt", b""),
        ("cut.ckpt", (tmp_path / "model.ckpt").read_bytes()[:3000]),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"vq.checkpoint=.*{name}: not a checkpoint that can be read safely"):
            read_state_dict(tmp_path / name)
    assert not made.exists()


def test_plain_resampling() -> None:
    model = small(resamp_with_conv=False, attn_type="none")
    assert not [k for k in model.state_dict() if "sample" in k or "attn" in k]
    x = torch.rand(1, 4, 6, 8)
    down, up = model.encoder.down[0].downsample(x), model.decoder.up[1].upsample(x)  # type: ignore[operator]
    assert torch.allclose(down, x.view(1, 4, 3, 2, 4, 2).mean((3, 5))) and torch.equal(
        up, x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    )
    assert model.encode(torch.rand(1, 3, 16, 24)).shape == (1, 8, 12) and model.decode(
        torch.zeros(1, 8, 12, dtype=torch.long)
    ).shape == (1, 3, 16, 24)


def test_tanh_at_the_end() -> None:
    codes = torch.arange(8).view(1, 2, 4)
    plain, bounded = small(), small(tanh_out=True)
    assert torch.equal(bounded.decode(codes), plain.decode(codes).tanh()) and not torch.equal(
        bounded.decode(codes), plain.decode(codes)
    )


def test_attention_of_type_none_leaves_the_rest_as_it_is() -> None:
    vanilla, none = small(attn_type="vanilla"), small(attn_type="none")
    assert vanilla.state_dict().keys() == small().state_dict().keys()
    assert none.state_dict().keys() == {k for k in vanilla.state_dict() if "attn" not in k}
    none.load_state_dict({k: v for k, v in vanilla.state_dict().items() if "attn" not in k})
    for name, module in vanilla.named_modules():
        if name.endswith(("attn_1.proj_out", "attn.0.proj_out", "attn.1.proj_out")):  # an attention that adds nothing
            module.weight.data.zero_(), module.bias.data.zero_()
    images = torch.rand(1, 3, 16, 16)
    assert torch.equal(vanilla.latents(images), none.latents(images))


@pytest.mark.parametrize(
    ("changes", "params", "message"),
    [
        ({"attn_type": "linear"}, {}, r"ddconfig.attn_type=linear is not supported, only vanilla or none"),
        ({"use_linear_attn": True}, {}, r"ddconfig.use_linear_attn=True is not supported, only False"),
        ({"give_pre_end": True}, {}, r"ddconfig.give_pre_end=True is not supported"),
        ({}, {"remap": "used.npy"}, r"remap=used.npy is not supported"),
        ({"ch": None}, {}, r"ddconfig.ch=None: must be a whole number above 0"),
        ({"ch": "128"}, {}, r"ddconfig.ch=128: must be a whole number above 0"),
        ({"ch_mult": []}, {}, r"ddconfig.ch_mult=\[\]: must be a list of whole numbers above 0"),
        ({"ch_mult": 4}, {}, r"ddconfig.ch_mult=4: must be a list of whole numbers above 0"),
        ({"attn_resolutions": 16}, {}, r"ddconfig.attn_resolutions=16: must be a list"),
        ({"num_groups": 32}, {}, r"4 channels \(ddconfig.ch times ch_mult\) do not divide into 32 groups"),
        ({}, {"n_embed": "many"}, r"not a VQGAN yaml"),
        ({}, {"embed_dim": None}, r"not a VQGAN yaml"),
    ],
)
def test_another_architecture_is_refused(tmp_path: Path, changes: dict, params: dict, message: str) -> None:
    path = write_yaml(tmp_path / "vqgan.yaml", {**SMALL, **changes}, **params)
    with pytest.raises(ValueError, match=rf"vq.config={path}: .*{message}"):
        VQConfig.from_yaml(path)


def test_missing_keys_are_named(tmp_path: Path) -> None:
    for key in (
        "ch",
        "ch_mult",
        "num_res_blocks",
        "attn_resolutions",
        "in_channels",
        "out_ch",
        "resolution",
        "z_channels",
    ):
        path = write_yaml(tmp_path / "vqgan.yaml", {k: v for k, v in SMALL.items() if k != key})
        with pytest.raises(
            ValueError, match=f"ddconfig lacks {key}; take the yaml that was published with the weights"
        ):
            VQConfig.from_yaml(path)
    path.write_text("just text")
    with pytest.raises(ValueError, match="not a VQGAN yaml"):
        VQConfig.from_yaml(path)


def test_keys_that_change_nothing_are_followed(tmp_path: Path) -> None:
    path = write_yaml(
        tmp_path / "vqgan.yaml",
        {**SMALL, "resamp_with_conv": True, "use_linear_attn": False, "note": "x"},
        lossconfig={"target": "x"},
        remap=None,
    )
    assert VQConfig.from_yaml(path).ddconfig["note"] == "x"


def test_attention_lies_at_the_levels_that_the_yaml_names() -> None:
    """In encoder and decoder at the same resolutions, under taming's names."""
    for resolutions, levels in (([8], {"1"}), ([16], {"0"}), ([16, 8], {"0", "1"}), ([], set())):
        keys = small(attn_resolutions=resolutions).state_dict()
        for part in ("encoder.down.", "decoder.up."):
            found = {key.removeprefix(part).split(".")[0] for key in keys if key.startswith(part) and ".attn." in key}
            assert found == levels, (part, resolutions)
