"""What is known of an image tokenizer before its weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass

PARTS = ("encoder", "decoder")  # the halves of a tokenizer


@dataclass(frozen=True)
class Sizes:
    """codebook_size: how many codes there are. downsampling: pixels per code along one side. resolution: side in
    pixels of the square images that it was trained on."""

    codebook_size: int
    downsampling: int
    resolution: int
