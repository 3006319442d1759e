"""A trained model with its vocabulary, its card and its image tokenizer, opened for inference."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from liquid_train.errors import UserError
from liquid_train.files import package_path
from liquid_train.generate.backbone_proof import check_proof
from liquid_train.generate.fused_decode import join_weights
from liquid_train.generate.int8 import quantize
from liquid_train.image_tokenizer.base import ImageTokenizer
from liquid_train.image_tokenizer.opening import open_image_tokenizer
from liquid_train.image_tokenizer.settings import AUTO, TAMING, VQSettings
from liquid_train.image_tokenizer.sizes import PARTS
from liquid_train.model.backbone import CARD, ModelCard, load_for_inference, open_language_model
from liquid_train.model.published import published
from liquid_train.vocabulary import UNCONDITIONAL, Vocabulary

# int8: what is not a weight of a layer
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.bfloat16}


@dataclass(frozen=True)
class Session:
    """Everything inference needs, on one device."""

    model: PreTrainedModel
    vocabulary: Vocabulary
    card: ModelCard
    device: torch.device
    force: bool = False  # take another VQ, null prompt or size than it was trained with

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of codes of the images it was trained on. UserError when it saw none."""
        if len(self.card.grid) != 2:
            raise UserError(
                "the model was trained on no images (liquid.json states no grid); train with a t2i, i2t or vqa source"
            )
        return self.card.grid[0], self.card.grid[1]

    def sizes(self, downsampling: int) -> list[tuple[int, int]]:
        """Width and height in pixels of the images it was trained on, the usual one first. UserError when it saw
        none."""
        rows, columns = self.grid
        return list(
            dict.fromkeys([(columns * downsampling, rows * downsampling), *((w, h) for w, h in self.card.sizes)])
        )

    def null_prompt(self, given: str, guidance: float) -> str:
        """What guidance draws away from. UserError when the model was not trained with it, unless forced."""
        trained = self.card.null_prompt
        if guidance == 1 or (given in (AUTO, trained) and trained):
            return trained or UNCONDITIONAL
        if not self.force:
            if not trained:
                raise UserError(
                    f"guidance={guidance}: the model was trained without a null prompt (data.unconditional=0); give "
                    "guidance=1, or force=true"
                )
            raise UserError(
                f"null_prompt={given}: the model was trained with {trained}; leave it out, or give force=true"
            )
        return UNCONDITIONAL if given == AUTO else given

    def image_size(self, size: str | None, downsampling: int) -> tuple[tuple[int, int], tuple[int, int] | None]:
        """size WIDTHxHEIGHT or None -> (rows and columns of codes, the size in pixels that the prompt states or None).

        UserError when the model was not trained on such images, unless forced.
        """
        usual = self.sizes(downsampling)[0]
        width, height = usual if size is None else (int(side) for side in size.split("x"))
        if width % downsampling or height % downsampling:
            raise UserError(
                f"size={size}: width and height must be multiples of {downsampling}, what the VQ makes a code of"
            )
        stated = [width, height] in self.card.sizes
        if not stated and (width, height) != usual:
            known = ", ".join(f"{w}x{h}" for w, h in self.card.sizes) or f"{usual[0]}x{usual[1]}"
            if not self.force:
                raise UserError(f"size={size}: the model was trained on {known}; give one of those, or force=true")
            stated = True
        return (height // downsampling, width // downsampling), ((width, height) if stated else None)


def device_of(name: str) -> torch.device:
    """auto is the first GPU, else the CPU. UserError for a device that is not there."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise UserError(f"device={name}: one of auto, cpu, cuda, cuda:N")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device={name}: this machine has {torch.cuda.device_count()} CUDA devices; give device=cpu or device=auto"
        )
    return device


def open_model(
    folder: Path, device: str, precision: str = "fp32", *, vq: VQSettings | None = None, force: bool = False
) -> Session:
    """Load a model/ folder, or one of the published layout, for which `vq` must name the image tokenizer.

    Raises UserError when it is neither, or the device is not there.
    """
    where, dtype = device_of(device), DTYPES[precision]
    loaded = torch.device("cpu") if precision == "int8" else where  # the bf16 weights need not fit on the device
    transformers_logging.disable_progress_bar()
    model: Any
    if (folder / CARD).is_file():
        model, vocabulary, card = load_for_inference(folder, loaded, dtype)
    else:
        vocabulary, card = published(folder, vq, f"checkpoint={folder}")
        model = open_language_model(folder, dtype).to(loaded)
    if not force:
        check_proof(model.config, f"checkpoint={folder}", "force=true runs it all the same")
    if precision == "int8":
        quantize(model)
        model = model.to(where)
    join_weights(model)
    return Session(model, vocabulary, card, where, force)


def as_trained(settings: VQSettings, card: ModelCard) -> VQSettings:
    """The settings with what the model was trained with wherever they say `auto`, the kind with its files."""
    own = card.vq
    files_given = AUTO not in (settings.config, settings.checkpoint)
    same_kind = settings.kind == AUTO or (settings.kind == TAMING and not files_given)
    return VQSettings(
        own.config if settings.config == AUTO else settings.config,
        own.checkpoint if settings.checkpoint == AUTO else settings.checkpoint,
        own.kind if same_kind else settings.kind,
        {**own.options, **settings.options} if same_kind else settings.options,
    )


def named(vq: VQSettings, key: str) -> str:
    """How a message names the image tokenizer: by the file of that key, by its kind where it has no such files."""
    return f"vq.{key}={getattr(vq, key)}" if vq.kind == TAMING else f"vq.kind={vq.kind}"


def open_vq(session: Session, settings: VQSettings, parts: tuple[str, ...] = PARTS) -> ImageTokenizer:
    """Load the image tokenizer, by default the one the card names; UserError when it is not the one of the
    training."""
    card = session.card
    vq = as_trained(settings, card)
    for key, path in (("config", vq.config), ("checkpoint", vq.checkpoint)):
        if vq.kind == TAMING and getattr(settings, key) == AUTO and not package_path(path).is_file():
            raise UserError(
                f"vq.{key}={path}: no such file here; the checkpoint's {CARD} names it, as the training did. Give "
                "vq.config and vq.checkpoint of that image tokenizer"
            )
    tokenizer = open_image_tokenizer(vq, parts)
    if tokenizer.codebook_size != card.codebook_size:
        raise UserError(
            f"{named(vq, 'config')}: {tokenizer.codebook_size} codes, the model has rows for {card.codebook_size}"
        )
    if tokenizer.fingerprint != card.vq_fingerprint and not session.force:
        raise UserError(
            f"{named(vq, 'checkpoint')}: not the VQ this model was trained with (fingerprint "
            f"{tokenizer.fingerprint[:16]}, the "
            "model needs "
            f"{card.vq_fingerprint[:16]}); give vq.config and vq.checkpoint of that one, or force=true"
        )
    return tokenizer.to(session.device)
