"""From `vq.*` of a config to the image tokenizer that it names. Needs torch only where one is opened."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liquid_train.errors import UserError
from liquid_train.image_tokenizer.kinds import IMAGE_TOKENIZERS, ImageTokenizerKind
from liquid_train.image_tokenizer.settings import AUTO, TAMING, VQSettings
from liquid_train.image_tokenizer.sizes import PARTS, Sizes

if TYPE_CHECKING:
    from liquid_train.image_tokenizer.base import ImageTokenizer


def open_image_tokenizer(settings: VQSettings, parts: tuple[str, ...] = PARTS) -> ImageTokenizer:
    """The image tokenizer of these settings: on the CPU, in fp32, eval mode, gradients off.

    parts: which of "encoder" and "decoder" are needed; with none, only sizes and fingerprint are known.
    Raises UserError for a kind that does not exist and for files that are missing or do not fit.
    """
    return find_kind(settings).open(settings, parts).eval().requires_grad_(False)


def tokenizer_sizes(settings: VQSettings) -> Sizes:
    """Codebook size, downsampling and resolution before any weights are read. Raises UserError."""
    return find_kind(settings).sizes(settings)


def tokenizer_files(settings: VQSettings) -> dict[str, Path]:
    """The files that decide the codes, by config key below `vq.`. Raises UserError for one that is missing."""
    return find_kind(settings).files(settings)


def find_kind(settings: VQSettings) -> type[ImageTokenizerKind]:
    """The kind that vq.kind names. Raises UserError where there is none, and for a class that is no image tokenizer."""
    kind = IMAGE_TOKENIZERS.find(settings.kind, "vq.kind")
    # model cards and shard sets name kinds too: what is no kind must not be called
    if not all(callable(getattr(kind, name, None)) for name in ("sizes", "files", "open")):
        raise UserError(
            f"vq.kind={settings.kind}: not an image tokenizer; derive it from "
            "liquid_train.image_tokenizer.base.ImageTokenizer (docs/extending.md)"
        )
    return kind


def kind_record(settings: VQSettings) -> dict[str, Any]:
    """What files record of the kind: nothing for `taming`, which files without a kind mean, and for `auto`."""
    if settings.kind in (TAMING, AUTO) and not settings.options:
        return {}
    return {"kind": settings.kind, "options": settings.options}


def recorded(settings: VQSettings, record: dict[str, Any]) -> VQSettings:
    """These settings with the kind and the options of what `kind_record` once gave."""
    return replace(settings, kind=record.get("kind", TAMING), options=record.get("options", {}))
