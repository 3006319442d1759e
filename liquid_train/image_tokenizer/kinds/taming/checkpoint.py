"""The tensors of a .ckpt or .safetensors, read without running any code from the file, and their fingerprint."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from liquid_train.errors import UserError
from liquid_train.image_tokenizer.kinds.taming.config import VQConfig


class _InertType(type):
    """torch fills only dicts from a checkpoint; this lets it take an Inert, which keeps nothing, for one."""

    def __eq__(cls, other: object) -> bool:
        return cls is other or other is dict

    __hash__ = type.__hash__


class Inert(metaclass=_InertType):
    """Stands in for every class and function that a checkpoint names, except those of tensors: accepts anything, does
    nothing."""

    def __new__(cls, *_: Any, **__: Any) -> Inert:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors or of a Lightning .ckpt, without running any pickled code; the training loss's are left
    out."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"vq.checkpoint={path}: no such file; give the VQGAN's .ckpt or .safetensors")
    try:
        loaded = load_file(path) if path.suffix == ".safetensors" else _load_pickle(path)
    except Exception as error:
        raise UserError(f"vq.checkpoint={path}: not a checkpoint that can be read safely: {error}") from error
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
    if not isinstance(state, dict):
        raise UserError(
            f"vq.checkpoint={path}: holds no state_dict, names with their tensors; give the VQGAN's .ckpt or "
            ".safetensors"
        )
    return {k: v for k, v in state.items() if isinstance(v, Tensor) and not k.startswith("loss.")}


def _load_pickle(path: Path) -> Any:
    """What torch.save wrote, with an Inert in place of all that is no tensor, number, text, list or dict.

    Training programs store their callbacks and settings next to the weights, as classes that are not installed here and
    that a file from elsewhere could name to run code. Files of torch before 1.6 are read only where they name no such
    class.
    """
    try:
        names = get_unsafe_globals_in_checkpoint(str(path))
    except ValueError:  # not a zip file
        names = []
    with safe_globals([(Inert, name) for name in names]):
        return torch.load(path, map_location="cpu", weights_only=True)


def fingerprint(state: dict[str, Tensor], config: VQConfig) -> str:
    """sha256 over the sorted (name, shape, fp32 little-endian bytes) of all tensors, then the architecture as sorted
    JSON."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().float().contiguous()
        digest.update(name.encode() + str(tuple(tensor.shape)).encode())
        digest.update(tensor.numpy().astype("<f4", copy=False).tobytes())
    digest.update(json.dumps(asdict(config), sort_keys=True).encode())
    return digest.hexdigest()
