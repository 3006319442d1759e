"""`liquid tokenize` against the published way of tokenizing images.

Baseline, written from the description of the published pipeline: eight threads share one VQGAN; each takes an image,
resizes and crops it, encodes it alone, and appends a row with the codes as a list; all rows are written as JSON at the
end. Same images, same weights, same crop, same cores; whole runs, each over all images, interleaved, median. Ours
includes starting its processes.

Without --pairs the images are easy-VQA's, enlarged to --size, and the VQGAN has random weights of the size of
--vq-config's default.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import save_file

from data_prep import tokenize
from data_prep.sources.easy_vqa import load_split
from liquid_train.config.compose import load
from liquid_train.data.shards import ShardSet
from liquid_train.image_tokenizer.base import scale_pixels
from liquid_train.image_tokenizer.kinds.taming.config import VQConfig
from liquid_train.image_tokenizer.kinds.taming.network import TamingVQGAN
from liquid_train.image_tokenizer.preprocess import cover, read_rgb

THREADS = 8
NEAR_TIE = 1e-4  # relative difference of the two nearest entries' distances, below which a code may differ
DDCONFIG = {
    "attn_resolutions": [],
    "ch": 32,
    "ch_mult": [1, 1, 2, 2, 4],
    "double_z": False,
    "dropout": 0.0,
    "in_channels": 3,
    "num_res_blocks": 1,
    "out_ch": 3,
    "resolution": 512,
    "z_channels": 64,
}


def published_way(
    model: TamingVQGAN, rows: list[dict[str, str]], root: Path, size: int, output: Path
) -> tuple[float, list[list[int]]]:
    """(seconds, codes of every image)."""

    def one(row: dict[str, str]) -> dict[str, Any]:
        pixels = cover(read_rgb(root / row["image_path"]), (size, size))
        with torch.inference_mode():
            return {**row, "vqcode": model.encode(scale_pixels(torch.from_numpy(pixels)[None]))[0].flatten().tolist()}

    started = time.perf_counter()
    with ThreadPoolExecutor(THREADS) as pool:
        done = list(pool.map(one, rows))
    output.write_text("".join(json.dumps(row) + "\n" for row in done))
    return time.perf_counter() - started, [row["vqcode"] for row in done]


def ours(pairs: Path, output: Path, size: int, vq: list[str], precision: str) -> tuple[float, np.ndarray]:
    """(seconds, codes [images, codes]) of liquid tokenize with its defaults."""
    overrides = [
        "tokenize.source=pairs",
        f"tokenize.input={pairs}",
        f"tokenize.output={output}",
        "tokenize.crop=center",
        f"tokenize.size={size}",
        f"tokenize.precision={precision}",
        "tokenize.progress=false",
        "tokenize.max_bad=0",
        *vq,
    ]
    started = time.perf_counter()
    tokenize.run(load("tokenize", overrides))
    return time.perf_counter() - started, np.stack([s["codes"].ravel() for s in ShardSet(output)])


def near_ties(model: TamingVQGAN, rows: list[dict[str, str]], root: Path, size: int, differ: np.ndarray) -> int:
    """How many of the differing codes [images, codes] lie between two entries that are equally near."""
    near = 0
    for n in np.flatnonzero(differ.any(1)):
        x = scale_pixels(torch.from_numpy(cover(read_rgb(root / rows[n]["image_path"]), (size, size)))[None])
        with torch.inference_mode():
            z = (
                model.latents(x)
                .permute(0, 2, 3, 1)
                .reshape(-1, model.config.embed_dim)[torch.from_numpy(np.flatnonzero(differ[n]))]
            )
            best = torch.cdist(z.double(), model.code_vectors().double()).square().topk(2, largest=False).values
        near += int(((best[:, 1] - best[:, 0]) / best[:, 1] < NEAR_TIE).sum())
    return near


def psnr(model: TamingVQGAN, codes: np.ndarray, rows: list[dict[str, str]], root: Path, size: int) -> float:
    """Mean PSNR in dB of decoded codes [images, codes] against the cropped images."""
    values = []
    for n, grid in enumerate(codes):
        pixels = cover(read_rgb(root / rows[n]["image_path"]), (size, size)).astype(np.float64)
        side = size // model.downsampling
        with torch.inference_mode():
            decoded = model.decode(torch.from_numpy(grid.astype(np.int64).reshape(1, side, side)))[0].clamp(-1, 1)
        error = np.square((decoded.permute(1, 2, 0).double().numpy() + 1) * 127.5 - pixels).mean()
        values.append(10 * np.log10(255**2 / error))
    return float(np.mean(values))


def prepare(args: argparse.Namespace, folder: Path) -> tuple[Path, Path, list[str]]:
    """(list of pairs, root of its paths, overrides that name the VQ)."""
    config, checkpoint = args.vq_config, args.vq_checkpoint
    if config is None:
        torch.manual_seed(0)
        model = TamingVQGAN(VQConfig(DDCONFIG, 1024, 64))
        torch.nn.init.normal_(model.code_vectors(), std=0.3)
        config, checkpoint = folder / "vqgan.yaml", folder / "model.safetensors"
        config.write_text(
            yaml.safe_dump({"model": {"params": {"ddconfig": DDCONFIG, "n_embed": 1024, "embed_dim": 64}}})
        )
        save_file(model.state_dict(), checkpoint)
    pairs = folder / "pairs.jsonl"
    if args.pairs:
        root = args.pairs.parent
        lines = args.pairs.read_text().splitlines()[: args.images]
        rows = [json.loads(line) for line in lines if line.strip()]
    else:
        root = Path("/")
        rows = [
            {"image_path": str(p.path), "text_prompt": p.caption or "a shape"}
            for p in load_split("train")[: args.images]
        ]
    pairs.write_text(
        "".join(json.dumps({**row, "image_path": str((root / row["image_path"]).resolve())}) + "\n" for row in rows)
    )
    return pairs, Path("/"), [f"vq.config={config}", f"vq.checkpoint={checkpoint}"]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.vq_pass", description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument(
        "--pairs", type=Path, help='JSON lines of {"image_path", "text_prompt"}; default: images of easy-VQA'
    )
    parser.add_argument("--vq-config", type=Path)
    parser.add_argument("--vq-checkpoint", type=Path)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        pairs, root, vq = prepare(args, folder)
        rows = [json.loads(line) for line in pairs.read_text().splitlines()]
        model = TamingVQGAN.from_files(*(o.partition("=")[2] for o in vq))
        seconds: dict[str, list[float]] = {"published way": [], "fp32": [], "bf16": []}
        codes: dict[str, np.ndarray] = {}
        for n in range(args.repeats):
            spent, lists = published_way(model, rows, root, args.size, folder / "rows.jsonl")
            seconds["published way"].append(spent)
            codes["published way"] = np.array(lists)
            for precision in ("fp32", "bf16"):
                spent, codes[precision] = ours(pairs, folder / f"{precision}-{n}", args.size, vq, precision)
                seconds[precision].append(spent)
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        print(
            f"{len(rows)} images of {args.size} px, {args.repeats} rounds, {torch.get_num_threads()} threads of "
            f"torch, {THREADS} Python threads "
            "(baseline)"
        )
        for name, median in medians.items():
            rates = ", ".join(f"{len(rows) / s:.1f}" for s in seconds[name])
            print(
                f"  {name:14} {len(rows) / median:6.1f} images/s, ratio {medians['published way'] / median:.2f}   "
                f"({rates})"
            )
        differ = codes["fp32"] != codes["published way"]
        print(
            f"  fp32: {int(differ.sum())} of {differ.size:,} codes differ, "
            f"{near_ties(model, rows, root, args.size, differ)} "
            "of them near ties"
        )
        some = slice(0, 50)
        before, after = (psnr(model, codes[name][some], rows, root, args.size) for name in ("fp32", "bf16"))
        print(
            f"  bf16: {(codes['bf16'] == codes['fp32']).mean():.2%} of the codes equal; PSNR {before:.3f} dB with "
            f"fp32's codes, {after:.3f} dB with "
            "bf16's"
        )
        shards = sum(s["bytes"] for s in ShardSet(folder / "fp32-0").shards)
        print(
            f"  {shards / len(rows):,.0f} bytes an image in shards, "
            f"{(folder / 'rows.jsonl').stat().st_size / len(rows):,.0f} "
            "as JSON rows"
        )


if __name__ == "__main__":
    main()
