"""Train the small image tokenizer that ships with this package (docs/tokenizer.md has its two commands).

Finite scalar quantization (Mentzer et al. 2023, arXiv 2309.15505): every latent channel is rounded to one of a few
levels with a straight-through gradient, so there is no codebook to collapse. The grid of all level combinations is then
written out as an ordinary codebook in taming's format.

Two losses: squared pixel error, and a caption loss that asks the mean of a small per-code network to name the caption's
words (bag of words, as Joulin et al. 2016, arXiv 1511.02251, do for whole images). The second one makes the codes carry
what the image shows, not only how each patch looks, which is what a small language model needs from them; tokenizers
aligned with text in this spirit are VILA-U (arXiv 2409.04429) and UniTok (arXiv 2502.20321). A third loss, for a second
pass, keeps neighbouring latents alike (total variation), so that the codes of a plain background repeat.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from liquid_train.image_tokenizer.base import ImageTokenizer
from liquid_train.image_tokenizer.kinds.taming.config import VQConfig
from liquid_train.image_tokenizer.kinds.taming.network import TamingVQGAN

DDCONFIG = {
    "attn_resolutions": [],
    "ch": 8,
    "ch_mult": [1, 2, 4, 8],
    "double_z": False,
    "dropout": 0.0,
    "in_channels": 3,
    "num_groups": 4,
    "num_res_blocks": 1,
    "out_ch": 3,
    "resolution": 64,
    "z_channels": 64,
}


def grid_codebook(levels: list[int]) -> Tensor:
    """All combinations of levels, centred on zero with unit steps: [prod(levels), len(levels)]."""
    axes = [[i - (n - 1) / 2 for i in range(n)] for n in levels]
    return torch.tensor(list(itertools.product(*axes)))


def round_to_grid(z: Tensor, levels: list[int]) -> Tensor:
    """z [B, len(levels), h, w] to the nearest grid point, straight-through gradient."""
    half = torch.tensor([(n - 1) / 2 for n in levels]).view(1, -1, 1, 1)
    rounded = ((z + half).round() - half).clamp(-half, half)
    return z + (rounded - z).detach()


def total_variation(z: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring latents [b, c, h, w]; where it is small, neighbouring codes are often
    equal."""
    return (z.diff(dim=2).abs().mean() + z.diff(dim=3).abs().mean()) / 2


def load_images(split: str) -> tuple[Tensor, Tensor]:
    """easy-VQA's "train" or "test" -> pixels uint8 [N, 3, 64, 64], and which of the 11 words (colours, then shapes) its
    caption has, as 0/1 [N, 11] (all -1 where there is no caption).

    Raises UserError where the easy-vqa package is missing.
    """
    easy_vqa = import_module("data_prep.sources.easy_vqa")  # by name: liquid_train imports no data source
    images = easy_vqa.load_split(split)
    pixels = np.stack([np.asarray(Image.open(i.path).convert("RGB")) for i in images])
    vocabulary = easy_vqa.COLORS + easy_vqa.SHAPES
    words = [[float(w in (i.color, i.shape)) if i.caption else -1.0 for w in vocabulary] for i in images]
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), torch.tensor(words)


def augment(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror half of the batch and shift all of it by up to 8 pixels; what comes in at a border repeats the border."""
    flip = torch.rand(len(pixels), generator=generator) < 0.5
    x = torch.where(flip.view(-1, 1, 1, 1), pixels.flip(-1), pixels).float() / 127.5 - 1
    dy, dx = (int(torch.randint(0, 17, (), generator=generator)) for _ in range(2))
    return F.pad(x, (8, 8, 8, 8), mode="replicate")[..., dy : dy + 64, dx : dx + 64]


def reconstruction_psnr(model: ImageTokenizer, pixels: Tensor) -> float:
    """Peak signal-to-noise ratio in dB (peak 255) over all of `pixels` uint8 [N, 3, H, W], through codes."""
    error = 0.0
    for batch in pixels.split(50):
        decoded = model.decode(model.encode(batch.float() / 127.5 - 1)).clamp(-1, 1)
        error += ((decoded.add(1).mul(127.5).round() - batch.float()) ** 2).mean().item() * len(batch)
    return 10 * math.log10(255**2 / (error / len(pixels)))


def train(
    levels: list[int],
    steps: int,
    batch: int,
    lr: float,
    caption_weight: float,
    smoothness: float,
    seed: int,
    start: Path | None = None,
    log: int = 100,
) -> TamingVQGAN:
    """Train from random weights, or from the folder `start`; prints the losses and the test PSNR now and then."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    pixels, words = load_images("train")
    test_pixels, _ = load_images("test")
    model = TamingVQGAN(VQConfig(DDCONFIG, math.prod(levels), len(levels)))
    model.fix_code_vectors(grid_codebook(levels))
    if start is not None:
        model.load_state_dict(TamingVQGAN.from_files(start / "vqgan.yaml", start / "model.safetensors").state_dict())
    caption_head = nn.Sequential(nn.Conv2d(len(levels), 128, 1), nn.GELU(), nn.Conv2d(128, words.shape[1], 1))
    parameters = [p for p in [*model.parameters(), *caption_head.parameters()] if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.99), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.05)
    started = time.time()
    for step in range(1, steps + 1):
        chosen = torch.randint(0, len(pixels), (batch,), generator=generator)
        x = augment(pixels[chosen], generator)
        with torch.autocast("cpu", torch.bfloat16):
            z = model.latents(x).float()
            quantized = round_to_grid(z, levels)
            pixel_loss = F.mse_loss(model.decode_latents(quantized).float(), x)
            logits = caption_head(quantized).float().mean((2, 3))  # [batch, words.shape[1]]
        known = words[chosen, 0] >= 0
        caption_loss = F.binary_cross_entropy_with_logits(logits[known], words[chosen][known])
        # keeps latents on the grid: there is no tanh in taming's encoder
        commitment = F.mse_loss(z, quantized.detach())
        loss = pixel_loss + caption_weight * caption_loss + 0.002 * commitment + smoothness * total_variation(z)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % log == 0:
            codes = model.nearest(z.detach())
            used, repeated = len(codes.unique()), (codes[:, :, 1:] == codes[:, :, :-1]).float().mean().item()
            decibel = 10 * math.log10(4 / pixel_loss.item())
            print(
                f"step {step} of {steps}: pixels {pixel_loss.item():.5f} ({decibel:.1f} dB), captions "
                f"{caption_loss.item():.4f}, "
                f"codes in batch {used}, equal to their left neighbour {repeated:.0%}, {time.time() - started:.0f} s",
                flush=True,
            )
        if step % 1000 == 0:
            with torch.no_grad():
                print(f"  test PSNR {reconstruction_psnr(model, test_pixels):.2f} dB", flush=True)
    return model.eval().requires_grad_(False)


def save(model: TamingVQGAN, output: Path) -> None:
    """Write vqgan.yaml and model.safetensors (half precision: exact halves of what was trained) into `output`."""
    output.mkdir(parents=True, exist_ok=True)
    config = {
        "model": {
            "params": {"ddconfig": DDCONFIG, "embed_dim": model.config.embed_dim, "n_embed": model.config.n_embed}
        }
    }
    (output / "vqgan.yaml").write_text(yaml.safe_dump(config))
    save_file({k: v.half().contiguous() for k, v in model.state_dict().items()}, output / "model.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for vqgan.yaml and model.safetensors")
    parser.add_argument(
        "--levels",
        type=int,
        nargs="+",
        default=[4, 4, 4, 4, 4],
        help="levels per latent channel; their product is the codebook size",
    )
    parser.add_argument("--steps", type=int, default=9000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--caption-weight", type=float, default=0.01)
    parser.add_argument("--smoothness", type=float, default=0.0, help="weight of the latents' total variation")
    parser.add_argument("--start", type=Path, help="a folder to go on from")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    model = train(
        args.levels, args.steps, args.batch, args.lr, args.caption_weight, args.smoothness, args.seed, args.start
    )
    save(model, args.output)
    loaded = TamingVQGAN.from_files(args.output / "vqgan.yaml", args.output / "model.safetensors")
    test_pixels, _ = load_images("test")
    print(
        f"test PSNR {reconstruction_psnr(loaded, test_pixels):.2f} dB, "
        f"{sum(p.numel() for p in loaded.parameters()):,} parameters, fingerprint {loaded.fingerprint[:12]}"
    )


if __name__ == "__main__":
    main()
