"""The VQGAN image tokenizer: images <-> grids of codes.

    images [B, 3, H, W] in [-1, 1]
      -> encoder -> quant_conv -> nearest codebook entry -> codes [B, H/f, W/f]
      -> codebook lookup -> post_quant_conv -> decoder -> images [B, 3, H, W]

One class serves the published Chameleon weights (`vqgan.yaml` + `vqgan.ckpt`, taming layout) and the small tokenizer
that ships with this package: the tensors' names, their layout and the yaml are the same, only the sizes differ. A
tokenizer trained by finite scalar quantization (Mentzer et al. 2023, arXiv 2309.15505) stores its grid as an explicit
codebook and is, from then on, a VQ like any other. Architecture: Esser et al. 2021 (arXiv 2012.09841).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from liquid_train.errors import UserError

PARTS = ("encoder", "decoder")
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


class Codebook(nn.Module):
    """`quantize.embedding` of taming's layout: [n_embed, embed_dim]."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.n_embed, config.embed_dim)


class ImageTokenizer(nn.Module):
    """VQGAN encoder, codebook and decoder. `parts` leaves out the half that a job does not need."""

    def __init__(self, config: VQConfig, parts: tuple[str, ...] = PARTS) -> None:
        super().__init__()
        self.config = config
        self.parts = parts
        self.fingerprint = ""  # set by from_files, over all tensors of the file, whatever parts are kept
        dd = config.ddconfig
        self.quantize = Codebook(config)
        if "encoder" in parts:
            self.encoder = Encoder(dd)
            z_out = dd["z_channels"] * (2 if dd.get("double_z") else 1)
            self.quant_conv = nn.Conv2d(z_out, config.embed_dim, 1)
        if "decoder" in parts:
            self.post_quant_conv = nn.Conv2d(config.embed_dim, dd["z_channels"], 1)
            self.decoder = Decoder(dd)

    @classmethod
    def from_files(cls, config: str | Path, checkpoint: str | Path, parts: tuple[str, ...] = PARTS) -> ImageTokenizer:
        """Load a yaml and a .ckpt or .safetensors in fp32, eval mode, gradients off.

        Raises UserError naming the file when it is missing, holds other tensors than the yaml describes, or is not a
        checkpoint.
        """
        vq_config = VQConfig.from_yaml(config)
        state = read_state_dict(checkpoint)
        model = cls(vq_config, parts)
        expected = model.state_dict()
        missing = sorted(set(expected) - set(state))
        misshapen = [k for k in expected if k in state and state[k].shape != expected[k].shape]
        if missing or misshapen:
            wrong = f"missing {missing[:3]}, other shape {misshapen[:3]}"
            raise UserError(f"vq.checkpoint={checkpoint} does not fit vq.config={config}: {wrong}")
        model.load_state_dict({k: state[k] for k in expected})
        model.fingerprint = fingerprint(state, vq_config)
        return model.eval().requires_grad_(False)

    @property
    def codebook_size(self) -> int:
        return self.config.n_embed

    @property
    def downsampling(self) -> int:
        return self.config.downsampling

    def latents(self, images: Tensor) -> Tensor:
        """images [B, 3, H, W] in [-1, 1] -> vectors before quantization [B, embed_dim, H/f, W/f]."""
        return self.quant_conv(self.encoder(images))

    def nearest(self, z: Tensor) -> Tensor:
        """z [B, embed_dim, h, w] -> codes [B, h, w] int64 of the nearest entry (squared distance, fp32; the first on a
        tie)."""
        flat = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1]).float()
        book = self.quantize.embedding.weight.float()
        distance = flat.pow(2).sum(1, keepdim=True) + book.pow(2).sum(1) - 2 * flat @ book.t()  # [B*h*w, n_embed]
        return distance.argmin(1).view(z.shape[0], z.shape[2], z.shape[3])

    def encode(self, images: Tensor) -> Tensor:
        """images [B, 3, H, W] in [-1, 1], sides multiples of the downsampling -> codes [B, H/f, W/f] int64."""
        f = self.downsampling
        if images.shape[-2] % f or images.shape[-1] % f:
            raise ValueError(
                f"image of {images.shape[-1]}x{images.shape[-2]}: both sides must be multiples of {f}; crop or "
                "resize first"
            )
        return self.nearest(self.latents(images))

    def decode(self, codes: Tensor) -> Tensor:
        """codes [B, h, w] -> images [B, 3, h*f, w*f], about [-1, 1] (not clamped)."""
        z = self.quantize.embedding(codes).permute(0, 3, 1, 2)
        return self.decode_latents(z)

    def decode_latents(self, z: Tensor) -> Tensor:
        """Quantized vectors [B, embed_dim, h, w] -> images [B, 3, h*f, w*f]."""
        return self.decoder(self.post_quant_conv(z))


class _InertType(type):
    """torch fills only dicts from a checkpoint; this lets it take an Inert, which keeps nothing, for one."""

    def __eq__(cls, other: object) -> bool:
        return cls is other or other is dict

    __hash__ = type.__hash__


class Inert(metaclass=_InertType):
    """Stands for every class and function that a checkpoint names besides those of tensors: takes everything, does
    nothing."""

    def __new__(cls, *_: Any, **__: Any) -> Inert:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...


def scale_pixels(pixels: Tensor) -> Tensor:
    """uint8 [B, H, W, 3] -> fp32 [B, 3, H, W] in [-1, 1], as the published tokenizer does it: in float64, rounded to
    fp32 last."""
    values = torch.arange(256, dtype=torch.float64, device=pixels.device).div(255).mul(2).sub(1).float()
    return values[pixels.int()].permute(0, 3, 1, 2).contiguous()


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors or of a Lightning .ckpt, without running any pickled code; the training loss's are left
    out."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"vq.checkpoint={path}: no such file; give the VQGAN's .ckpt or .safetensors")
    try:
        loaded = load_file(path) if path.suffix == ".safetensors" else _load_pickle(path)
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(f"vq.checkpoint={path}: not a checkpoint that can be read safely: {error}") from error
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
    if not isinstance(state, dict):
        raise UserError(
            f"vq.checkpoint={path}: holds no state_dict, names with their tensors; give the VQGAN's .ckpt or "
            ".safetensors"
        )
    return {k: v for k, v in state.items() if isinstance(v, Tensor) and not k.startswith("loss.")}


def _load_pickle(path: Path) -> Any:
    """What torch.save wrote, with an Inert in place of all that is no tensor, number, text, list or dict.

    Training programs store their callbacks and settings next to the weights, as classes that are not installed here and
    that a file from elsewhere could name to run code. Files of torch before 1.6 are read only where they name no such
    class.
    """
    try:
        names = get_unsafe_globals_in_checkpoint(str(path))
    except ValueError:  # not a zip file
        names = []
    with safe_globals([(Inert, name) for name in names]):
        return torch.load(path, map_location="cpu", weights_only=True)


def fingerprint(state: dict[str, Tensor], config: VQConfig) -> str:
    """sha256 over the sorted (name, shape, fp32 little-endian bytes) of all tensors, then the architecture as sorted
    JSON."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().float().contiguous()
        digest.update(name.encode() + str(tuple(tensor.shape)).encode())
        digest.update(tensor.numpy().astype("<f4", copy=False).tobytes())
    digest.update(json.dumps(asdict(config), sort_keys=True).encode())
    return digest.hexdigest()


def _norm(channels: int, dd: dict[str, Any]) -> nn.GroupNorm:
    return nn.GroupNorm(dd.get("num_groups", 32), channels, eps=1e-6)


class ResnetBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int, dd: dict[str, Any]) -> None:
        super().__init__()
        self.norm1 = _norm(c_in, dd)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2 = _norm(c_out, dd)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        if c_in != c_out:
            self.nin_shortcut = nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + h


class AttnBlock(nn.Module):
    """Single-head self-attention over all positions of the grid."""

    def __init__(self, channels: int, dd: dict[str, Any]) -> None:
        super().__init__()
        self.norm = _norm(channels, dd)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        y = self.norm(x)
        q, k, v = (m(y).view(b, 1, c, h * w).transpose(2, 3) for m in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v)  # [b, 1, h*w, c]
        return x + self.proj_out(y.transpose(2, 3).reshape(b, c, h, w))


def _attention(channels: int, dd: dict[str, Any]) -> nn.Module:
    return nn.Identity() if dd.get("attn_type") == "none" else AttnBlock(channels, dd)


class Downsample(nn.Module):
    def __init__(self, channels: int, dd: dict[str, Any]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2) if dd.get("resamp_with_conv", True) else None

    def forward(self, x: Tensor) -> Tensor:
        if self.conv is None:
            return F.avg_pool2d(x, 2)
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # taming pads right and bottom only


class Upsample(nn.Module):
    def __init__(self, channels: int, dd: dict[str, Any]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if dd.get("resamp_with_conv", True) else None

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return x if self.conv is None else self.conv(x)


class Middle(nn.Module):
    def __init__(self, channels: int, dd: dict[str, Any]) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, dd)
        self.attn_1 = _attention(channels, dd)
        self.block_2 = ResnetBlock(channels, channels, dd)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Level(nn.Module):
    """One resolution: residual blocks, attention after each where configured, then a change of resolution (or none)."""

    def __init__(self, c_in: int, c_out: int, blocks: int, attention: bool, dd: dict[str, Any]) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResnetBlock(c_in if i == 0 else c_out, c_out, dd) for i in range(blocks))
        self.attn = nn.ModuleList(_attention(c_out, dd) for _ in range(blocks if attention else 0))

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[i](x)
        for name in ("downsample", "upsample"):
            if hasattr(self, name):
                x = getattr(self, name)(x)
        return x


class Encoder(nn.Module):
    def __init__(self, dd: dict[str, Any]) -> None:
        super().__init__()
        ch, mult = dd["ch"], dd["ch_mult"]
        resolution, c_in = dd["resolution"], ch
        self.conv_in = nn.Conv2d(dd["in_channels"], ch, 3, padding=1)
        self.down = nn.ModuleList()
        for i, m in enumerate(mult):
            level = Level(c_in, ch * m, dd["num_res_blocks"], resolution in dd["attn_resolutions"], dd)
            c_in = ch * m
            if i < len(mult) - 1:
                level.downsample = Downsample(c_in, dd)
                resolution //= 2
            self.down.append(level)
        self.mid = Middle(c_in, dd)
        self.norm_out = _norm(c_in, dd)
        self.conv_out = nn.Conv2d(c_in, dd["z_channels"] * (2 if dd.get("double_z") else 1), 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    def __init__(self, dd: dict[str, Any]) -> None:
        super().__init__()
        ch, mult = dd["ch"], dd["ch_mult"]
        c_in = ch * mult[-1]
        resolution = dd["resolution"] // 2 ** (len(mult) - 1)
        self.conv_in = nn.Conv2d(dd["z_channels"], c_in, 3, padding=1)
        self.mid = Middle(c_in, dd)
        levels: list[Level] = []
        for i in reversed(range(len(mult))):
            level = Level(c_in, ch * mult[i], dd["num_res_blocks"] + 1, resolution in dd["attn_resolutions"], dd)
            c_in = ch * mult[i]
            if i > 0:
                level.upsample = Upsample(c_in, dd)
                resolution *= 2
            levels.insert(0, level)  # taming numbers the levels from the finest
        self.up = nn.ModuleList(levels)
        self.norm_out = _norm(c_in, dd)
        self.conv_out = nn.Conv2d(c_in, dd["out_ch"], 3, padding=1)
        self.tanh_out = dd.get("tanh_out", False)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        x = self.conv_out(F.silu(self.norm_out(x)))
        return x.tanh() if self.tanh_out else x
