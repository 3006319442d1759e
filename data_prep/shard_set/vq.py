"""Which image tokenizer made the codes of a set: the files of --vq-config and --vq-checkpoint, or else those that ship
with the package; a set that another kind made names that kind itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liquid_train.data.shard_format import INDEX_NAME
from liquid_train.errors import UserError
from liquid_train.image_tokenizer.opening import kind_record, open_image_tokenizer, recorded
from liquid_train.image_tokenizer.settings import VQSettings

if TYPE_CHECKING:  # torch is imported only where images are encoded or decoded
    from liquid_train.image_tokenizer.base import ImageTokenizer

FLAGS = "--vq-config and --vq-checkpoint"


@dataclass(frozen=True)
class AskedVQ:
    """The image tokenizer to work with. given: named by the user's flags."""

    settings: VQSettings
    given: bool

    @property
    def name(self) -> str:
        """How a message names it."""
        if kind_record(self.settings):
            return f"the image tokenizer {self.settings.kind}"
        return str(self.settings.checkpoint) if self.given else "the VQ that ships with the package"

    def open(self, parts: tuple[str, ...]) -> ImageTokenizer:
        """Raises UserError naming the file or the kind that is missing or does not fit."""
        return open_image_tokenizer(self.settings, parts)

    def of_set(self, index: dict[str, Any]) -> AskedVQ:
        """With the kind that the recipe of a set names."""
        recipe = index.get("recipe", {})
        made_with = recipe.get("vq") if isinstance(recipe, dict) else None
        return replace(self, settings=recorded(self.settings, made_with if isinstance(made_with, dict) else {}))


def asked_vq(config: str | None, checkpoint: str | None) -> AskedVQ:
    """Raises UserError when only one of the two files is named."""
    if (config is None) != (checkpoint is None):
        raise UserError(f"{FLAGS} go together: give the VQGAN's yaml and its .ckpt or .safetensors")
    shipped = VQSettings()
    return AskedVQ(VQSettings(config or shipped.config, checkpoint or shipped.checkpoint), config is not None)


def mismatch(index: dict[str, Any], model: ImageTokenizer, vq: AskedVQ) -> str | None:
    """Why an image tokenizer is not the one that made a set's codes; None where it is, or may be for an index that
    names none."""
    if "vq_fingerprint" not in index:
        if not vq.given:
            return f"{INDEX_NAME} names no VQ"
        highest = index.get("max_code", 0)
        return (
            f"codes up to {highest}, beyond the {model.codebook_size} of {vq.name}"
            if highest >= model.codebook_size
            else None
        )
    if index["vq_fingerprint"] == model.fingerprint:
        return None
    return (
        f"codes of another VQ: fingerprint {index['vq_fingerprint'][:16]} in {INDEX_NAME}, "
        f"{model.fingerprint[:16]} for {vq.name}"
    )


def open_vq_of_set(path: Path, index: dict[str, Any], asked: AskedVQ, parts: tuple[str, ...]) -> ImageTokenizer:
    """The image tokenizer for decoding a set. Raises UserError where the set holds no codes or those of another one."""
    if "vq_fingerprint" not in index and "max_code" not in index:
        raise UserError(f"{path}: a set of texts, there are no images to decode")
    vq = asked.of_set(index)
    model = vq.open(parts)
    if different := mismatch(index, model, vq):
        raise UserError(f"{path}: {different}; give the right one with {FLAGS}")
    return model
