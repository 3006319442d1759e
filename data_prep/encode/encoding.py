"""How the images of one set are encoded: the image tokenizer, the crop, the device, and how many processes."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from data_prep.encode.crops import Crop, make_crop
from data_prep.settings import TokenizeJob, TokenizeSettings
from liquid_train.errors import UserError
from liquid_train.image_tokenizer.opening import tokenizer_sizes
from liquid_train.image_tokenizer.settings import VQSettings

if TYPE_CHECKING:  # torch is imported only where something is left to encode
    from data_prep.encode.encoder import BatchEncoder


@dataclass(frozen=True)
class Encoding:
    """An encoder with the crop before it; workers: processes that read and, on a CPU, encode."""

    encoder: BatchEncoder
    crop: Crop
    workers: int

    @property
    def identity(self) -> dict[str, Any]:
        """What codes can depend on in addition to the recipe."""
        import torch

        settings = self.encoder.settings
        return {
            "device": settings.device.partition(":")[0],
            "batch_size": settings.batch_size,
            "compile": settings.compile,
            "torch": torch.__version__,
        }

    def with_batch(self, batch_size: int) -> Encoding:
        """The same encoder from now on with batches of this size."""
        self.encoder.settings = replace(self.encoder.settings, batch_size=batch_size)
        return self


def open_crop(t: TokenizeSettings, vq: VQSettings) -> Crop:
    """The crop for this image tokenizer, without torch for the built-in kinds. Raises UserError where a size does not
    fit it."""
    sizes = tokenizer_sizes(vq)
    return make_crop(
        t.crop, t.size, t.sizes, t.max_aspect, downsampling=sizes.downsampling, resolution=sizes.resolution
    )


def check_device(name: str) -> None:
    """Raise UserError for a name that no device has."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise UserError(f"tokenize.device={name}: one of auto, cpu, cuda, cuda:N")


def open_encoding(config: TokenizeJob, crop: Crop) -> Encoding:
    """Load the image tokenizer and settle where it runs. Raises UserError when its files do not fit or the device is
    not there."""
    import torch

    from data_prep.encode.encoder import BatchEncoder, EncoderSettings

    t = config.tokenize
    device = t.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"  # torchrun: one rank a GPU
    if device != "cpu" and int(device.partition(":")[2]) >= torch.cuda.device_count():
        raise UserError(
            f"tokenize.device={t.device}: this machine has {torch.cuda.device_count()} CUDA devices; give auto or cpu"
        )
    if t.compile and device == "cpu":
        raise UserError("tokenize.compile=true: compiling gains nothing on a CPU; leave it out")
    batch_size = 1 if t.batch_size == "auto" else int(t.batch_size)
    settings = EncoderSettings(config.vq, device, t.precision, t.compile, batch_size)
    return Encoding(BatchEncoder(settings), crop, processes(t))


def processes(t: TokenizeSettings) -> int:
    """Processes next to the main one: tokenize.workers, or one a core, shared by torchrun's ranks on this machine."""
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, _cores() // ranks_here) if t.workers is None else t.workers


def _cores() -> int:
    """Cores this process may use (macOS cannot tell them from the machine's)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
