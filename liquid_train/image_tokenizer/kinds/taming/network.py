"""The network of a VQGAN in taming's layout: encoder, codebook and decoder.

    images [b, 3, h, w] in -1..1
      -> encoder -> quant_conv -> nearest codebook entry -> codes [b, h/f, w/f]
      -> codebook lookup -> post_quant_conv -> decoder -> images [b, 3, h, w]

Architecture: Esser et al. 2021 (arXiv 2012.09841).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from liquid_train.errors import UserError
from liquid_train.image_tokenizer.base import ImageTokenizer
from liquid_train.image_tokenizer.kinds.taming.checkpoint import fingerprint, read_state_dict
from liquid_train.image_tokenizer.kinds.taming.config import VQConfig
from liquid_train.image_tokenizer.sizes import PARTS


class Codebook(nn.Module):
    """`quantize.embedding` of taming's layout: [n_embed, embed_dim]."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.n_embed, config.embed_dim)


class TamingVQGAN(ImageTokenizer):
    """VQGAN encoder, codebook and decoder. `parts` leaves out the half that a job does not need."""

    def __init__(self, config: VQConfig, parts: tuple[str, ...] = PARTS) -> None:
        super().__init__()
        self.config = config
        self.parts = parts
        self.codebook_size = config.n_embed
        self.downsampling = config.downsampling
        self.resolution = config.resolution
        self.fingerprint = ""  # set by from_files, over all tensors of the file, whatever parts are kept
        dd = config.ddconfig
        self.quantize = Codebook(config)
        if "encoder" in parts:
            self.encoder = VQEncoder(dd)
            z_out = dd["z_channels"] * (2 if dd.get("double_z") else 1)
            self.quant_conv = nn.Conv2d(z_out, config.embed_dim, 1)
        if "decoder" in parts:
            self.post_quant_conv = nn.Conv2d(config.embed_dim, dd["z_channels"], 1)
            self.decoder = VQDecoder(dd)
        self._layout = torch.preserve_format
        self._compiled: Callable[[Tensor], Tensor] | None = None

    @classmethod
    def from_files(cls, config: str | Path, checkpoint: str | Path, parts: tuple[str, ...] = PARTS) -> TamingVQGAN:
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

    def latents(self, images: Tensor) -> Tensor:
        """images [b, 3, h, w] in -1..1 -> vectors before quantization [b, embed_dim, h/f, w/f]."""
        latents: Tensor = self.quant_conv(self.encoder(images))
        return latents

    def nearest(self, z: Tensor) -> Tensor:
        """z [b, embed_dim, rows, columns] -> codes [b, rows, columns] int64 of the nearest entry: by squared distance
        in fp32, the first on a tie."""
        flat = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1]).float()
        book = self.quantize.embedding.weight.float()
        # [b*rows*columns, n_embed]
        distance = flat.pow(2).sum(1, keepdim=True) + book.pow(2).sum(1) - 2 * flat @ book.t()
        return distance.argmin(1).view(z.shape[0], z.shape[2], z.shape[3])

    def encode(self, images: Tensor) -> Tensor:
        """images [b, 3, h, w] in -1..1 -> codes [b, h/f, w/f] int64. Raises UserError for sides that are no multiples
        of the downsampling f."""
        f = self.downsampling
        if images.shape[-2] % f or images.shape[-1] % f:
            raise UserError(
                f"image of {images.shape[-1]}x{images.shape[-2]}: both sides must be multiples of {f}; crop or "
                "resize first"
            )
        images = images.to(self.quant_conv.weight.dtype, memory_format=self._layout)
        return self.nearest((self._compiled or self.latents)(images))

    def prepare_encoder(self, dtype: torch.dtype, *, compiled: bool = False) -> None:
        """The network in dtype, the distances to the codebook in fp32 always.

        channels_last changes 2% of the codes on a CPU in fp32, and is faster everywhere else.
        """
        exact = self.device.type == "cpu" and dtype == torch.float32
        self._layout = torch.contiguous_format if exact else torch.channels_last
        for module in (self.encoder, self.quant_conv):
            module.to(dtype=dtype, memory_format=self._layout)  # type: ignore[call-overload]  # not in torch's stubs
        if compiled:
            self._compiled = torch.compile(self.latents, dynamic=False)

    def decode(self, codes: Tensor) -> Tensor:
        """codes [b, rows, columns] -> images [b, 3, rows*f, columns*f], about -1..1 (not clamped)."""
        z = self.quantize.embedding(codes).permute(0, 3, 1, 2)
        return self.decode_latents(z)

    def decode_latents(self, z: Tensor) -> Tensor:
        """Quantized vectors [b, embed_dim, rows, columns] -> images [b, 3, rows*f, columns*f]."""
        images: Tensor = self.decoder(self.post_quant_conv(z))
        return images

    def code_vectors(self) -> Tensor:
        """The codebook: [n_embed, embed_dim]."""
        return self.quantize.embedding.weight

    def fix_code_vectors(self, vectors: Tensor) -> None:
        """Take [n_embed, embed_dim] for the codebook, and train it no further."""
        self.quantize.embedding.weight.data.copy_(vectors)
        self.quantize.requires_grad_(False)

    def features(self, images: Tensor) -> Tensor:
        """What the encoder's last convolution reads, averaged over positions: [b, channels]."""
        return self.encoder.hidden(images).mean(dim=(2, 3))

    def describe_features(self) -> str:
        width = self.encoder.conv_out.in_channels
        return (
            f"mean over positions of the VQ encoder's last hidden layer ({width} features, VQ {self.fingerprint[:12]})"
        )

    def activation_bytes(self, width: int, height: int) -> int:
        """Of the first layers, which work at the image's own size: the widest in bytes."""
        return width * height * int(self.config.ddconfig["ch"]) * 4


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
        h: Tensor = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        shortcut: Tensor = self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x
        return shortcut + h


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
        attended: Tensor = self.proj_out(y.transpose(2, 3).reshape(b, c, h, w))
        return x + attended


def _attention(channels: int, dd: dict[str, Any]) -> nn.Module:
    return nn.Identity() if dd.get("attn_type") == "none" else AttnBlock(channels, dd)


class Downsample(nn.Module):
    def __init__(self, channels: int, dd: dict[str, Any]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2) if dd.get("resamp_with_conv", True) else None

    def forward(self, x: Tensor) -> Tensor:
        if self.conv is None:
            return F.avg_pool2d(x, 2)
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))  # taming pads right and bottom only
        return out


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
        out: Tensor = self.block_2(self.attn_1(self.block_1(x)))
        return out


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


class VQEncoder(nn.Module):
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

    def hidden(self, x: Tensor) -> Tensor:
        """images [b, 3, h, w] -> what the last convolution reads [b, channels, h/f, w/f]."""
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return F.silu(self.norm_out(self.mid(x)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv_out(self.hidden(x))
        return out


class VQDecoder(nn.Module):
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
        out: Tensor = x.tanh() if self.tanh_out else x
        return out
