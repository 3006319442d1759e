"""Which VQ made the codes of a set: the one of --vq-config and --vq-checkpoint, else the one that ships with the
package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liquid_train.config.compose import package_path
from liquid_train.data.shard_format import INDEX_NAME
from liquid_train.errors import UserError
from liquid_train.image_tokenizer.settings import VQSettings

if TYPE_CHECKING:  # torch is imported only where images are encoded or decoded
    from liquid_train.image_tokenizer.taming import ImageTokenizer

FLAGS = "--vq-config and --vq-checkpoint"


@dataclass(frozen=True)
class VQFiles:
    """A VQ's yaml and weights. given: named by the user, not the package's own."""

    config: Path
    checkpoint: Path
    given: bool

    def open(self, parts: tuple[str, ...]) -> ImageTokenizer:
        """Raises UserError naming the file that is missing or does not fit."""
        from liquid_train.image_tokenizer.taming import ImageTokenizer

        return ImageTokenizer.from_files(self.config, self.checkpoint, parts)


def vq_files(config: str | None, checkpoint: str | None) -> VQFiles:
    """Raises UserError when only one of the two is named."""
    if (config is None) != (checkpoint is None):
        raise UserError(f"{FLAGS} go together: give the VQGAN's yaml and its .ckpt or .safetensors")
    shipped = VQSettings()
    return VQFiles(
        package_path(config or shipped.config), package_path(checkpoint or shipped.checkpoint), config is not None
    )


def mismatch(index: dict[str, Any], model: ImageTokenizer, files: VQFiles) -> str | None:
    """Why a VQ is not the one that made a set's codes; None where it is, or may be for an index that names none."""
    which = str(files.checkpoint) if files.given else "the VQ that ships with the package"
    if "vq_fingerprint" not in index:
        if not files.given:
            return f"{INDEX_NAME} names no VQ"
        highest = index.get("max_code", 0)
        return (
            f"codes up to {highest}, beyond the {model.codebook_size} of {which}"
            if highest >= model.codebook_size
            else None
        )
    if index["vq_fingerprint"] == model.fingerprint:
        return None
    return (
        f"codes of another VQ: fingerprint {index['vq_fingerprint'][:16]} in {INDEX_NAME}, "
        f"{model.fingerprint[:16]} for {which}"
    )


def open_vq(path: Path, index: dict[str, Any], files: VQFiles, parts: tuple[str, ...]) -> ImageTokenizer:
    """The VQ for decoding a set. Raises UserError where the set holds no codes or those of another VQ."""
    if "vq_fingerprint" not in index and "max_code" not in index:
        raise UserError(f"{path}: a set of texts, there are no images to decode")
    model = files.open(parts)
    if different := mismatch(index, model, files):
        raise UserError(f"{path}: {different}; give the right one with {FLAGS}")
    return model
