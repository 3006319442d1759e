"""Folders in Hugging Face format, written file by file: never more than one file's tensors are in memory.

One model.safetensors, or model-0000i-of-0000n.safetensors with model.safetensors.index.json, as transformers writes and reads them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from liquid_train.files import sync, write_synced

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Plan:
    """Which tensors go into which file, in the order they come. names: of every file; elements, size: of all, size in bytes."""

    names: list[list[str]]
    elements: int
    size: int

    @classmethod
    def of(cls, tensors: Iterable[tuple[str, Tensor]], shard_gib: float) -> Plan:
        """Files of at most shard_gib * 2**30 bytes; a larger tensor has one of its own. Only shapes and dtypes are read: meta tensors do.

        Neighbours stay together, so that tensors that come one after another fill one file at a time.
        """
        names: list[list[str]] = []
        elements = size = filled = 0
        for name, tensor in tensors:
            own = tensor.numel() * tensor.element_size()
            if not names or filled + own > shard_gib * 2**30:
                names.append([])
                filled = 0
            names[-1].append(name)
            filled += own
            size += own
            elements += tensor.numel()
        return cls(names, elements, size)

    def file(self, number: int) -> str:
        """Name of file `number` (from 0)."""
        count = len(self.names)
        return SAFE_WEIGHTS_NAME if count == 1 else SAFE_WEIGHTS_NAME.replace(".", f"-{number + 1:05d}-of-{count:05d}.")

    def write_file(self, folder: Path, number: int, tensors: dict[str, Tensor]) -> None:
        """Write one file; OSError where it cannot be written."""
        path = folder / self.file(number)
        try:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
        except SafetensorError as error:  # what safetensors makes of an OSError
            raise OSError(f"{path}: {error}") from error
        path.chmod(folder.stat().st_mode & 0o666)  # safetensors gives a file to its owner alone

    def write_index(self, folder: Path) -> None:
        """The index that tells which tensor is in which file; nothing where there is one file."""
        if len(self.names) > 1:
            weight_map = {name: self.file(number) for number, names in enumerate(self.names) for name in names}
            index = {"metadata": {"total_parameters": self.elements, "total_size": self.size}, "weight_map": weight_map}
            write_synced(folder / SAFE_WEIGHTS_INDEX_NAME, json.dumps(index, indent=2))


def export(source: Path, output: Path, *, dtype: str | None = None, shard_gib: float = 5.0) -> Plan:
    """Copy a folder in Hugging Face format to `output`, its weights cast to `dtype` (None: as stored) and cut into files anew.

    Everything beside the weights (tokenizer, generation config, liquid.json) is copied; config.json names the new dtype. The folder
    appears under its name when it is complete. Memory: one file of the output, and one tensor of the source.
    ValueError: output exists, source has no safetensors, a value is too large for fp16, or the disk cannot take it.
    """
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise ValueError(f"{output} exists already; give a folder that is empty or not there")
    if not shard_gib > 0:
        raise ValueError(f"--shard-gib {shard_gib:g}: must be above 0")
    if not any(source.glob("*.safetensors")):
        raise ValueError(f"{source}: no *.safetensors there; only those can be exported")
    cast_to = DTYPES[dtype] if dtype else None
    partial = output.absolute().with_name(f".{output.absolute().name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        plan = _copy_weights(source, partial, cast_to, shard_gib)
        _copy_rest(source, partial, cast_to)
        for path in [*partial.iterdir(), partial]:
            sync(path)
        partial.rename(output)
        sync(partial.parent)
    except OSError as error:
        raise ValueError(f"{output}: could not be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return plan


def _copy_weights(source: Path, folder: Path, dtype: torch.dtype | None, shard_gib: float) -> Plan:
    where = {}
    stand_ins = {}  # on the meta device: what the tensors will be, without their content
    for path in sorted(source.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - a file, not a dict
                where[name] = path
                stored = file.get_slice(name)
                kept = stored[:0].dtype if stored.get_shape() else file.get_tensor(name).dtype
                stand_ins[name] = torch.empty(stored.get_shape(), dtype=dtype if dtype and kept.is_floating_point else kept, device="meta")
    plan = Plan.of(stand_ins.items(), shard_gib)
    for number, names in enumerate(plan.names):
        tensors = {}
        for name in names:
            with safe_open(where[name], "pt") as file:
                tensors[name] = _cast(name, file.get_tensor(name), stand_ins[name].dtype)
        plan.write_file(folder, number, tensors)
    plan.write_index(folder)
    return plan


def _cast(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    cast = tensor.to(dtype)
    if dtype == torch.float16 and not torch.equal(cast.isinf(), tensor.isinf()):
        raise ValueError(f"--dtype fp16: {name} holds values beyond fp16's {torch.finfo(dtype).max:g}; use bf16")
    return cast


def _copy_rest(source: Path, folder: Path, dtype: torch.dtype | None) -> None:
    for path in source.iterdir():
        if path.is_file() and path.suffix != ".safetensors" and path.name != SAFE_WEIGHTS_INDEX_NAME:
            shutil.copyfile(path, folder / path.name)
    if dtype is not None:
        config = json.loads((source / "config.json").read_text())
        config.pop("torch_dtype", None)  # the name of older transformers
        write_synced(folder / "config.json", json.dumps(config | {"dtype": str(dtype).removeprefix("torch.")}, indent=2))
