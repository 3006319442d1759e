"""The Hugging Face causal LM: built on the meta device, extended by image rows, filled on every rank, and written back
as an HF folder.

build: config (or folder) + vocabulary -> model on meta, with vocab_size + codebook_size embedding rows
fill:  after sharding, every rank computes or reads only the rows that it holds
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel

from liquid_train.errors import UserError
from liquid_train.files import COMMIT
from liquid_train.image_tokenizer.settings import TAMING, VQSettings
from liquid_train.model.architecture import LONGEST, REFUSED, check_model, config_of
from liquid_train.model.attention import PACKED
from liquid_train.model.families import family_of, find_family, use_family
from liquid_train.model.settings import BackboneConfig
from liquid_train.model.shrink import remove_noise
from liquid_train.model.stored_layout import Piece, as_stored, blocks_of
from liquid_train.vocabulary import Vocabulary, load_tokenizer, text_size

ROW_BLOCK = 1024  # rows drawn from one random generator, so that a rank need not draw those of others
CARD = "liquid.json"
IN_MODEL = "model:"  # begins paths that are relative to the folder of liquid.json


@dataclass(frozen=True)
class ModelCard:
    """What inference must know besides the HF config: liquid.json in model/."""

    image_start: int
    codebook_size: int
    vq_fingerprint: str
    vq_config: str
    vq_checkpoint: str
    grid: list[int]  # rows and columns of an image's codes; for images of several sizes, of the squarest
    prompt: str  # suffix of a text-to-image prompt
    # what guidance steers away from; empty: none was trained (data.unconditional=0)
    null_prompt: str = "<unconditional>"
    # width and height in pixels that a prompt may state (tokenize.crop=multiratio)
    sizes: list[list[int]] = field(default_factory=list)
    # what follows is in the file only where it is not the default
    family: str | None = None  # backbone.family, where one was named
    vq_kind: str = TAMING
    vq_options: dict[str, Any] = field(default_factory=dict)

    @property
    def vq(self) -> VQSettings:
        """The image tokenizer that it was trained with."""
        return VQSettings(self.vq_config, self.vq_checkpoint, self.vq_kind, self.vq_options)

    @classmethod
    def read(cls, folder: str | Path) -> ModelCard:
        """UserError when the folder has no liquid.json, a damaged one, or one that names code outside this package and
        does not belong to a run's checkpoint: a model from elsewhere must not choose what is imported."""
        path = Path(folder) / CARD
        if not path.is_file():
            raise UserError(
                f"{folder}: no {CARD} there; give a run, a checkpoint or a model/ folder that liquid train wrote"
            )
        try:
            card = cls(**json.loads(path.read_text()))
        except (ValueError, TypeError) as error:  # no JSON, no object, or other fields
            raise UserError(f"{path}: damaged, or of another version of liquid train: {error}") from error
        card = replace(
            card, vq_config=card.found(card.vq_config, path), vq_checkpoint=card.found(card.vq_checkpoint, path)
        )
        outside = [name for name in (card.vq_kind, card.family or "") if "." in name]
        if outside and not (path.parents[1] / COMMIT).is_file():
            raise UserError(
                f"{path}: names {' and '.join(outside)}, code that would be imported; that is done only for a "
                f"checkpoint of a run, whose {COMMIT} lies next to model/. Give the run or the checkpoint"
            )
        return card

    @staticmethod
    def found(file: str, card: Path) -> str:
        """A file that a liquid.json names, from anywhere."""
        return str(card.parent / file.removeprefix(IN_MODEL)) if file.startswith(IN_MODEL) else file

    def write(self, folder: Path) -> None:
        content = asdict(self)
        if self.vq_kind == TAMING:
            del content["vq_kind"], content["vq_options"]
        if self.family is None:
            del content["family"]
        (folder / CARD).write_text(json.dumps(content, indent=2))


def model_config(backbone: BackboneConfig, tokenizer_entries: int) -> PreTrainedConfig:
    """The backbone's transformers config, before image rows are added; that of the folder where backbone.path is set.

    vocab_size is the published one where the architecture has it, else tokenizer_entries. From here on, the model's
    family is that of backbone.family.
    Raises UserError for a model_type or field that transformers does not know.
    """
    # imported first: a user's own may register its architecture with transformers
    family = find_family(backbone.family, "backbone.family") if backbone.family else None
    config = _hf_config(backbone, tokenizer_entries)
    if family:
        use_family(config.model_type, family)
    return config


def _hf_config(backbone: BackboneConfig, tokenizer_entries: int) -> PreTrainedConfig:
    if backbone.path is not None:
        try:
            published: PreTrainedConfig = AutoConfig.from_pretrained(backbone.path, local_files_only=True)
            return published
        except (OSError, *REFUSED) as error:
            raise UserError(
                f"backbone.path={backbone.path}: {shorten(' '.join(str(error).split()), LONGEST, placeholder=' ...')}"
            ) from error
    fields = {name: value for name, value in backbone.architecture.items() if (name, value) != ("vocab_size", None)}
    return config_of({"vocab_size": tokenizer_entries, **fields})


def start_card(backbone: BackboneConfig) -> ModelCard | None:
    """The card of a start that has image rows already, which training goes on with: the folder of a run's model, or of
    an imported one. None for a plain language model, which is given new rows."""
    if backbone.path is None or not (Path(backbone.path) / CARD).is_file():
        return None
    return ModelCard.read(backbone.path)


def backbone_key(backbone: BackboneConfig) -> str:
    """Where a backbone's config comes from, for messages."""
    return "backbone.architecture" if backbone.path is None else f"backbone.path={backbone.path}"


def check_backbone(backbone: BackboneConfig) -> PreTrainedConfig:
    """The backbone's config. Raises UserError for one that cannot be built or run, before there is a tokenizer or a run
    folder."""
    names = backbone.special_tokens
    if names is not None:
        key = f"backbone.special_tokens=[{','.join(names)}]"
        if (backbone.tokenizer or backbone.path) is None:
            raise UserError(
                f"{key}: names entries of a tokenizer that is given; leave it out, or give backbone.tokenizer"
            )
        if len(set(names)) < len(names) or "" in names:
            raise UserError(f"{key}: give three different entries")
    config = model_config(backbone, backbone.tokenizer_size)
    check_model(config, backbone_key(backbone))
    return config


def build(config: PreTrainedConfig, vocabulary: Vocabulary, attention: str = PACKED) -> PreTrainedModel:
    """The model on the meta device: fp32, vocabulary.rows embedding rows, `attention` as registered by attention.py."""
    config.vocab_size = vocabulary.rows
    tokenizer = vocabulary.tokenizer
    config.bos_token_id, config.eos_token_id, config.pad_token_id = (
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
    )
    remove_noise(config)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation=attention
        )
    model.generation_config = GenerationConfig.from_model_config(config)
    return model


def block_of(parameter: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """The block of a parameter that this rank holds, and its offset in the whole, by dimension."""
    if not isinstance(parameter, DTensor):
        return parameter.data, (0,) * parameter.ndim
    _, offset = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    return parameter.to_local(), tuple(offset)


def rows_of(parameter: Tensor) -> tuple[Tensor, int]:
    """This rank's rows of a parameter that is sharded by rows only (embedding, head), and the number of the first."""
    local, offset = block_of(parameter)
    return local, offset[0] if offset else 0


@torch.no_grad()
def materialize(model: PreTrainedModel, device: torch.device, *, offloaded: bool = False) -> None:
    """Allocate the (sharded) meta model on `device`; with `offloaded`, its parameters on the host.

    Weights stay uninitialized. Buffers (rotary tables, Gemma's embedding scale) are in no checkpoint, and are
    initialized here as transformers does it.
    """
    model.to_empty(device="cpu" if offloaded else device)
    model.tie_weights()  # to_empty has allocated an unsharded tied head separately
    for module in model.modules():
        if any(True for _ in module.buffers(recurse=False)):
            for name, buffer in module.named_buffers(recurse=False):
                module._buffers[name] = buffer.to(device)
            model._init_weights(module)


@torch.no_grad()
def fill_random(model: PreTrainedModel, seed: int) -> None:
    """Random weights, initialized as transformers does (normal; ones for norms, zeros for biases), the same for any
    world size."""
    std = float(getattr(model.config, "initializer_range", 0.02))
    norm = 0.0 if family_of(model.config.model_type).norms_add_one else 1.0
    for name, parameter in model.named_parameters():
        local, offset = block_of(parameter)
        if parameter.ndim == 1:
            local.fill_(0.0 if name.endswith("bias") else norm)
        elif local.numel():
            rows = random_rows((name, seed), offset[0], len(local), parameter.shape[1:], std)
            local.copy_(rows[(slice(None), *columns(local, offset))])


def columns(local: Tensor, offset: tuple[int, ...]) -> tuple[slice, ...]:
    """The rank's part of all dimensions but the first."""
    return tuple(slice(begin, begin + n) for begin, n in zip(offset[1:], local.shape[1:], strict=True))


def random_rows(key: tuple[object, ...], first: int, count: int, shape: torch.Size, std: float) -> Tensor:
    """Rows first .. first+count-1 of an endless normal matrix that key chooses: fp32 [count, *shape] on the CPU."""
    parts = []
    for block in range(first // ROW_BLOCK, (first + count - 1) // ROW_BLOCK + 1):
        rows = torch.empty(ROW_BLOCK, *shape).normal_(
            0, std, generator=torch.Generator().manual_seed(key_number((*key, block)))
        )
        lo, hi = max(first, block * ROW_BLOCK), min(first + count, (block + 1) * ROW_BLOCK)
        parts.append(rows[lo - block * ROW_BLOCK : hi - block * ROW_BLOCK])
    return torch.cat(parts)


def key_number(key: tuple[object, ...]) -> int:
    """A 63-bit seed from a key, the same in every process."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "little") >> 1


@dataclass(frozen=True)
class Loaded:
    """What this rank has read of a folder's weights."""

    seconds: float
    read: int  # bytes
    stored: int  # bytes of all weights in the folder

    def __str__(self) -> str:
        return f"read {self.read / 2**30:.2f} GiB of {self.stored / 2**30:.2f} in {self.seconds:.1f} s"


@torch.no_grad()
def fill_from_folder(model: PreTrainedModel, folder: str | Path) -> Loaded:
    """Load safetensors, every rank the part that it holds, once. Rows that the folder lacks (a new vocabulary) become
    zeros, which embedding_init.py then fills.

    Raises UserError naming a tensor that is missing or has another shape.
    """
    begin, read = time.monotonic(), 0
    paths = sorted(Path(folder).glob("*.safetensors"))
    if not paths:
        raise UserError(f"{folder}: no *.safetensors there; give a folder in Hugging Face format")
    with contextlib.ExitStack() as files:
        stored = {name: tensor for path in paths for name, tensor in _open(path, files)}
        blocks = blocks_of(model, {name: tuple(tensor.get_shape()) for name, tensor in stored.items()})
        for name, parameter in model.named_parameters():
            if name not in blocks:
                raise UserError(f"{folder}: the weights lack {name}")
            local, offset = block_of(parameter)
            block = blocks[name]
            rows_missing = parameter.shape[0] - block.shape[0] if block.shape else 0
            if block.shape[1:] != parameter.shape[1:] or rows_missing < 0 or (rows_missing and len(block.pieces) > 1):
                raise UserError(
                    f"{folder}: {name} has shape {list(block.shape)}, the model needs {list(parameter.shape)}"
                )
            if rows_missing:
                local[max(block.shape[0] - offset[0], 0) :].zero_()
            read += sum(_read_piece(local, offset, piece, stored[piece.name]) for piece in block.pieces)
    return Loaded(time.monotonic() - begin, read, sum(path.stat().st_size for path in paths))


def _read_piece(local: Tensor, offset: tuple[int, ...], piece: Piece, stored: Any) -> int:
    """Copy the part of a stored tensor that lies in this rank's block. Bytes read."""
    begins = [max(a, b) for a, b in zip(offset, piece.offset, strict=True)]
    ends = [min(a + n, b + m) for a, n, b, m in zip(offset, local.shape, piece.offset, piece.shape, strict=True)]
    if any(end <= begin for begin, end in zip(begins, ends, strict=True)):
        return 0
    here = tuple(slice(begin - a, end - a) for begin, end, a in zip(begins, ends, offset, strict=True))
    there = [slice(begin - a, end - a) for begin, end, a in zip(begins, ends, piece.offset, strict=True)]
    if piece.stacked is not None:
        del there[piece.stacked]
    part: Tensor = stored[tuple(there)]
    local[here].copy_(part if piece.stacked is None else part.unsqueeze(piece.stacked))
    return part.nbytes


def _open(path: Path, files: contextlib.ExitStack) -> list[tuple[str, Any]]:
    """The names of a file's tensors, each with what reads parts of it, as long as `files` is open."""
    try:
        file: Any = files.enter_context(safe_open(path, "pt"))
        return [(name, file.get_slice(name)) for name in file.keys()]  # noqa: SIM118 - a file, not a dict
    except SafetensorError as error:
        raise UserError(f"{path}: not a safetensors file that can be read: {error}; fetch it again") from error


def named_full_tensors(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Every parameter unsharded, one after another, on its device, as a folder stores it (stored_layout.py); a
    collective: all ranks must iterate together."""
    whole = (
        (name, (parameter.full_tensor() if isinstance(parameter, DTensor) else parameter).detach())
        for name, parameter in model.named_parameters()
    )
    return as_stored(model, whole)


def stored_shapes(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """What named_full_tensors yields, as meta tensors, on any one rank."""
    return as_stored(
        model, ((name, torch.empty(p.shape, dtype=p.dtype, device="meta")) for name, p in model.named_parameters())
    )


def load_for_inference(
    folder: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[Any, Vocabulary, ModelCard]:
    """Load an HF folder that liquid train wrote: (plain transformers model in eval mode, its vocabulary, its card)."""
    vocabulary = read_vocabulary(folder)
    return open_language_model(folder, dtype).to(device), vocabulary, ModelCard.read(folder)


def open_language_model(folder: str | Path, dtype: torch.dtype) -> Any:
    """The plain transformers model of an HF folder, in eval mode, on the CPU. Raises UserError where there is none."""
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{folder}: no model that transformers can load: {' '.join(str(error).split())}") from error
    return model.eval().requires_grad_(False)


def read_vocabulary(folder: str | Path) -> Vocabulary:
    """The vocabulary of an HF folder that liquid train wrote; the family that its card names is used from here on.

    Raises UserError where its tokenizer was changed.
    """
    card = ModelCard.read(folder)
    tokenizer = load_tokenizer(folder)
    if (ids := text_size(tokenizer)) != card.image_start:
        raise UserError(
            f"{folder}: the tokenizer has ids below {ids} but image ids start at {card.image_start}; the "
            "tokenizer was changed"
        )
    config = json.loads((Path(folder) / "config.json").read_text())
    if card.family is not None:
        use_family(config["model_type"], find_family(card.family, f"{Path(folder) / CARD}: family"))
    return Vocabulary(tokenizer, card.codebook_size, int(config["vocab_size"]))
