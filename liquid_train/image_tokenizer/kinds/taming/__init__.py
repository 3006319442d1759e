"""The kind `taming`: VQGANs in CompVis/taming-transformers' layout, a yaml (vq.config) with weights (vq.checkpoint).

One network serves the published Chameleon weights (`vqgan.yaml` with `vqgan.ckpt`) and the small tokenizer that ships
with this package: names, layout and yaml are the same, only the sizes differ. A tokenizer trained by finite scalar
quantization (Mentzer et al. 2023, arXiv 2309.15505) stores its grid as an explicit codebook and is, from then on, a VQ
like any other.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from liquid_train.errors import UserError
from liquid_train.files import package_path
from liquid_train.image_tokenizer.kinds import IMAGE_TOKENIZERS
from liquid_train.image_tokenizer.kinds.taming.config import VQConfig
from liquid_train.image_tokenizer.settings import VQSettings
from liquid_train.image_tokenizer.sizes import Sizes

if TYPE_CHECKING:  # torch is imported only where a tokenizer is opened
    from liquid_train.image_tokenizer.kinds.taming.network import TamingVQGAN


@IMAGE_TOKENIZERS.register("taming")
class Taming:
    """Opens a TamingVQGAN from its two files."""

    @classmethod
    def sizes(cls, settings: VQSettings) -> Sizes:
        """As the yaml states them. Raises UserError for a yaml that is missing or of another architecture."""
        config = VQConfig.from_yaml(package_path(settings.config))
        return Sizes(config.n_embed, config.downsampling, config.resolution)

    @classmethod
    def files(cls, settings: VQSettings) -> dict[str, Path]:
        """Yaml and weights. Raises UserError for one that is missing."""
        found = {"config": package_path(settings.config), "checkpoint": package_path(settings.checkpoint)}
        for key, path in found.items():
            if not path.is_file():
                raise UserError(
                    f"vq.{key}={getattr(settings, key)}: no such file; give the VQGAN's "
                    f"{'yaml' if key == 'config' else '.ckpt or .safetensors'}"
                )
        return found

    @classmethod
    def open(cls, settings: VQSettings, parts: tuple[str, ...]) -> TamingVQGAN:
        """Raises UserError for files that are missing or do not fit together."""
        from liquid_train.image_tokenizer.kinds.taming.network import TamingVQGAN

        if settings.options:
            raise UserError(f"vq.options={settings.options}: vq.kind=taming takes none; leave it out")
        return TamingVQGAN.from_files(package_path(settings.config), package_path(settings.checkpoint), parts)
