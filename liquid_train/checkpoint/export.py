"""`liquid checkpoint export`: a checkpoint's model for plain transformers, in a folder or an object store.

Weights are read, cast and written file by file: memory holds one file of the output and one tensor of the source.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from liquid_train.checkpoint.carried_vq import FOLDER as VQ_FOLDER
from liquid_train.checkpoint.carried_vq import carry_vq
from liquid_train.checkpoint.safetensors_shards import ShardPlan
from liquid_train.data.remote import file_system
from liquid_train.errors import UserError
from liquid_train.files import check_folder, read_json, sync, write_synced
from liquid_train.model.backbone import ModelCard

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
CONFIG = "config.json"  # without it a folder is no model


def export(
    source: Path,
    output: str | Path,
    *,
    dtype: str | None = None,
    shard_gib: float = 5.0,
    card: ModelCard | None = None,
) -> ShardPlan:
    """Copy a folder in Hugging Face format to `output`, with its weights cast to `dtype` (None: as stored) and split
    into files of up to `shard_gib` GiB.

    Everything else (tokenizer, generation config, liquid.json) is copied, and config.json names the new dtype. output:
    a folder, which appears under its name once it is complete, or an fsspec URL (s3://bucket/model), where config.json
    is written last. card: of a source that has no liquid.json; written with the image tokenizer's files.
    Raises UserError when output exists or cannot be written, source has no safetensors, or a value is too large for
    fp16.
    """
    if not shard_gib > 0:
        raise UserError(f"--shard-gib {shard_gib:g}: must be above 0")
    if not any(source.glob("*.safetensors")):
        raise UserError(f"{source}: no *.safetensors there; only those can be exported")
    cast_to = DTYPES[dtype] if dtype else None
    try:
        to = _to_store if "://" in str(output) else _to_folder
        return to(source, str(output), cast_to, shard_gib, card)
    except OSError as error:
        raise UserError(f"{output}: could not be written: {error}") from error
    except SafetensorError as error:
        raise UserError(f"{source}: its weights cannot be read: {error}; see liquid checkpoint verify") from error


def _to_folder(
    source: Path, output: str, dtype: torch.dtype | None, shard_gib: float, card: ModelCard | None
) -> ShardPlan:
    final = Path(output).absolute()
    if final.is_file() or (final.is_dir() and any(final.iterdir())):
        raise UserError(f"{output} exists already; give a folder that is empty or not there")
    check_folder(final, f"OUTPUT {output}")
    partial = final.with_name(f".{final.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        plan = _copy_weights(source, partial, dtype, shard_gib)
        _copy_rest(source, partial, dtype, card)
        for path in [*partial.rglob("*"), partial]:
            sync(path)
        partial.rename(final)
        sync(partial.parent)
        return plan
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _to_store(source: Path, url: str, dtype: torch.dtype | None, shard_gib: float, card: ModelCard | None) -> ShardPlan:
    system, root = file_system(url.rstrip("/"))
    if system.exists(f"{root}/{CONFIG}"):
        raise UserError(f"{url} holds a model already; give another URL, or remove it there")
    with tempfile.TemporaryDirectory() as folder:

        def send() -> None:
            files = [path for path in Path(folder).rglob("*") if path.is_file()]
            for path in sorted(files, key=lambda p: p.name == CONFIG):
                system.put_file(str(path), f"{root}/{path.relative_to(folder).as_posix()}")
                path.unlink()

        plan = _copy_weights(source, Path(folder), dtype, shard_gib, written=send)
        _copy_rest(source, Path(folder), dtype, card)
        send()
    return plan


def _copy_weights(
    source: Path, folder: Path, dtype: torch.dtype | None, shard_gib: float, written: Callable[[], None] = lambda: None
) -> ShardPlan:
    """Write the weight files one after another. `written` is called after each, and may move the file away before the
    next is made."""
    where = {}
    stand_ins = {}  # meta tensors: shape and dtype of the output's tensors
    for path in sorted(source.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - a file, not a dict
                where[name] = path
                stored = file.get_slice(name)
                kept = stored[:0].dtype if stored.get_shape() else file.get_tensor(name).dtype
                stand_ins[name] = torch.empty(
                    stored.get_shape(), dtype=dtype if dtype and kept.is_floating_point else kept, device="meta"
                )
    plan = ShardPlan.of(stand_ins.items(), shard_gib)
    for number, names in enumerate(plan.names):
        tensors = {}
        for name in names:
            with safe_open(where[name], "pt") as file:
                tensors[name] = _cast(name, file.get_tensor(name), stand_ins[name].dtype)
        plan.write_file(folder, number, tensors)
        written()
    plan.write_index(folder)
    return plan


def _cast(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    cast = tensor.to(dtype)
    if dtype == torch.float16 and not torch.equal(cast.isinf(), tensor.isinf()):
        raise UserError(f"--dtype fp16: {name} holds values beyond fp16's {torch.finfo(dtype).max:g}; use bf16")
    return cast


def _copy_rest(source: Path, folder: Path, dtype: torch.dtype | None, card: ModelCard | None) -> None:
    for path in source.iterdir():
        if path.is_file() and path.suffix != ".safetensors" and path.name != SAFE_WEIGHTS_INDEX_NAME:
            shutil.copyfile(path, folder / path.name)
    if (source / VQ_FOLDER).is_dir():
        shutil.copytree(source / VQ_FOLDER, folder / VQ_FOLDER)
    if dtype is not None:
        config = read_json(source / CONFIG)
        config.pop("torch_dtype", None)  # the name of older transformers
        write_synced(folder / CONFIG, json.dumps(config | {"dtype": str(dtype).removeprefix("torch.")}, indent=2))
    if card is not None:
        carry_vq(card, folder).write(folder)
