"""The architecture of a VQGAN, as its yaml in taming's format states it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from liquid_train.errors import UserError

# Keys of ddconfig without which the tensors' shapes are not known, each with the type of its value.
NEEDED = {
    "ch": int,
    "ch_mult": list,
    "num_res_blocks": int,
    "attn_resolutions": list,
    "in_channels": int,
    "out_ch": int,
    "resolution": int,
    "z_channels": int,
}
# Keys that some VQGANs have and this one follows for these values alone; a key that is in neither list changes nothing,
# as in taming.
VALUES: dict[str, tuple[Any, ...]] = {
    "resamp_with_conv": (True, False),
    "tanh_out": (True, False),
    "attn_type": ("vanilla", "none"),
    "use_linear_attn": (False,),
    "give_pre_end": (False,),
}


@dataclass(frozen=True)
class VQConfig:
    """The architecture, as the published yaml states it.

    ddconfig: taming's encoder/decoder settings (ch, ch_mult, num_res_blocks, attn_resolutions, resolution, z_channels,
    ...); `num_groups` (group norm; 32 where absent, as published) is the one key that taming does not have.
    resamp_with_conv=false, tanh_out=true and attn_type=none are followed as in the published code.
    n_embed: codebook entries. embed_dim: width of one entry.
    """

    ddconfig: dict[str, Any] = field(hash=False)
    n_embed: int = 8192
    embed_dim: int = 256

    @classmethod
    def from_yaml(cls, path: str | Path) -> VQConfig:
        """Read `model.params` of a taming yaml; UserError when the file or a needed key is missing, or for an unknown
        architecture."""
        path = Path(path)
        if not path.is_file():
            raise UserError(f"vq.config={path}: no such file; give the VQGAN's yaml")
        try:
            params = yaml.safe_load(path.read_text())["model"]["params"]
            config = cls(dict(params["ddconfig"]), int(params["n_embed"]), int(params["embed_dim"]))
        except (KeyError, TypeError, ValueError, yaml.YAMLError) as error:
            needs = "model.params.ddconfig, n_embed, embed_dim"
            raise UserError(f"vq.config={path}: not a VQGAN yaml (needs {needs}): {error}") from error
        if params.get("remap") is not None:
            raise UserError(
                f"vq.config={path}: remap={params['remap']} is not supported: codes are entries of the codebook itself"
            )
        check_ddconfig(config.ddconfig, f"vq.config={path}")
        return config

    @property
    def downsampling(self) -> int:
        """Pixels per code along one side."""
        return int(2 ** (len(self.ddconfig["ch_mult"]) - 1))

    @property
    def resolution(self) -> int:
        """Side in pixels of the square images that it was trained on."""
        return int(self.ddconfig["resolution"])


def check_ddconfig(dd: dict[str, Any], where: str) -> None:
    """Raise UserError, which begins with `where`, for a ddconfig that leaves sizes open or asks for another
    architecture."""
    missing = [key for key in NEEDED if key not in dd]
    if missing:
        raise UserError(
            f"{where}: ddconfig lacks {', '.join(missing)}; take the yaml that was published with the weights"
        )
    for key, kind in NEEDED.items():
        values = dd[key] if isinstance(dd[key], list) else [dd[key]]
        whole = all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in values)
        if not isinstance(dd[key], kind) or not whole or (key == "ch_mult" and not values):
            raise UserError(
                f"{where}: ddconfig.{key}={dd[key]}: must be "
                f"{'a list of whole numbers' if kind is list else 'a whole number'} "
                "above 0"
            )
    groups = dd.get("num_groups", 32)
    uneven = [ch for ch in (dd["ch"] * m for m in [1, *dd["ch_mult"]]) if ch % groups]
    if uneven:
        raise UserError(
            f"{where}: {uneven[0]} channels (ddconfig.ch times ch_mult) do not divide into {groups} groups; set "
            "num_groups"
        )
    for key, values in VALUES.items():
        if key in dd and dd[key] not in values:
            raise UserError(
                f"{where}: ddconfig.{key}={dd[key]} is not supported, only {' or '.join(map(str, values))}; use a "
                "VQGAN without it"
            )
