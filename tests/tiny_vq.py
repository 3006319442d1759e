"""A tiny VQ with random weights: 8 pixels a code, 64 entries."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file

from liquid_train.image_tokenizer.kinds.taming.config import VQConfig
from liquid_train.image_tokenizer.kinds.taming.network import TamingVQGAN

DDCONFIG = {
    "attn_resolutions": [],
    "ch": 4,
    "ch_mult": [1, 1, 1, 1],
    "double_z": False,
    "dropout": 0.0,
    "in_channels": 3,
    "num_groups": 2,
    "num_res_blocks": 1,
    "out_ch": 3,
    "resolution": 64,
    "z_channels": 4,
}
CODEBOOK = 64


def make_vq(folder: Path, seed: int = 0) -> list[str]:
    """Write its yaml and weights into a new folder; the overrides that name them."""
    folder.mkdir()
    torch.manual_seed(seed)
    model = TamingVQGAN(VQConfig(DDCONFIG, CODEBOOK, 4))
    model.code_vectors().data.normal_()
    params = {"ddconfig": DDCONFIG, "n_embed": CODEBOOK, "embed_dim": 4}
    (folder / "vqgan.yaml").write_text(yaml.safe_dump({"model": {"params": params}}))
    save_file(model.state_dict(), folder / "model.safetensors")
    return [f"vq.config={folder / 'vqgan.yaml'}", f"vq.checkpoint={folder / 'model.safetensors'}"]
