"""What every image tokenizer can do: images to codes and back.

    images [b, 3, h, w] in -1..1  -> encode ->  codes [b, rows, columns]  -> decode ->  images [b, 3, h, w]

A subclass sets four attributes (codebook_size, downsampling, resolution, fingerprint) and defines encode and decode.
The other methods have defaults, of which some refuse what a tokenizer may not have.

A tokenizer with k sub-codes a position would give codes [b, rows, columns, k]. No code for k > 1 exists yet: whoever
reads codes here may rely on three dimensions.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

from liquid_train.errors import UserError
from liquid_train.image_tokenizer.settings import VQSettings
from liquid_train.image_tokenizer.sizes import PARTS, Sizes


class ImageTokenizer(nn.Module, ABC):
    """An image tokenizer, on one device.

    codebook_size, downsampling, resolution: as in Sizes.
    fingerprint: identifies the codes: two tokenizers with one fingerprint give the same codes for the same image.
    Shard sets and models record it, and codes of another fingerprint are refused.
    parts: which halves are there; a job that only encodes, or only decodes, opens one of them.
    """

    codebook_size: int
    downsampling: int
    resolution: int
    fingerprint: str
    parts: tuple[str, ...] = PARTS

    @classmethod
    def sizes(cls, settings: VQSettings) -> Sizes:
        """The sizes, before anything large is loaded; by default those of a tokenizer that is opened without parts."""
        opened = cls.open(settings, ())
        return Sizes(opened.codebook_size, opened.downsampling, opened.resolution)

    @classmethod
    def files(cls, settings: VQSettings) -> dict[str, Path]:
        """The files that decide the codes, by config key below `vq.`; their hashes become part of a shard set's recipe.

        Raises UserError for one that is missing. With no files, the fingerprint alone tells tokenizers apart.
        """
        return {}

    @classmethod
    def open(cls, settings: VQSettings, parts: tuple[str, ...]) -> ImageTokenizer:
        """Load the tokenizer on the CPU, at least those of PARTS that are asked for; by default `cls(**vq.options)`.

        Raises UserError for settings that do not fit.
        """
        try:
            inspect.signature(cls).bind(**settings.options)
        except TypeError as error:
            raise UserError(f"vq.options={settings.options}: {cls.__name__}: {error}") from error
        return cls(**settings.options)

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """images [b, 3, h, w] in -1..1, sides multiples of the downsampling -> codes [b, rows, columns] int64."""

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """codes [b, rows, columns] int64 -> images [b, 3, h, w], about -1..1 (the caller clamps)."""

    def prepare_encoder(self, dtype: torch.dtype, *, compiled: bool = False) -> None:
        """Make `encode` compute in dtype (images stay fp32, so does the choice of a code), and compile it.

        Raises UserError where the tokenizer cannot.
        """
        if dtype != torch.float32:
            raise UserError(f"tokenize.precision=bf16: {type(self).__name__} computes in fp32 only; give fp32")
        if compiled:
            raise UserError(f"tokenize.compile=true: {type(self).__name__} cannot be compiled; leave it out")

    def code_vectors(self) -> Tensor:
        """A vector for every code, alike for codes that look alike: [codebook_size, d]. Raises UserError for none."""
        raise UserError(f"backbone.image_init=codebook: {type(self).__name__} has no code_vectors; give mean or normal")

    def features(self, images: Tensor) -> Tensor:
        """images [b, 3, h, w] in -1..1 -> features [b, d], for distances between sets of images. Raises UserError."""
        raise UserError(f"features.kind=vq: {type(self).__name__} has no features; give features.kind=inception or hf")

    def describe_features(self) -> str:
        """What `features` are, for the provenance of a distance."""
        return f"features of {type(self).__name__}"

    def activation_bytes(self, width: int, height: int) -> int:
        """fp32 activations of the encoder's widest layer for one image; the batch size on a CPU follows from it. By
        default those of the image itself."""
        return width * height * 3 * 4

    @property
    def device(self) -> torch.device:
        """Where the tokenizer is: that of its first tensor, the CPU for one without tensors."""
        tensor = next(chain(self.parameters(), self.buffers()), None)
        return torch.device("cpu") if tensor is None else tensor.device


def scale_pixels(pixels: Tensor) -> Tensor:
    """uint8 [b, h, w, 3] -> fp32 [b, 3, h, w] in -1..1: computed in float64 and rounded to fp32 last, as the published
    tokenizer does it."""
    values = torch.arange(256, dtype=torch.float64, device=pixels.device).div(255).mul(2).sub(1).float()
    return values[pixels.int()].permute(0, 3, 1, 2).contiguous()
