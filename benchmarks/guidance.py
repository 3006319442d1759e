"""Right colours and shapes of 240 generated images against the guidance scale: `python -m benchmarks.guidance RUN
[--plot FILE.png]`."""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from rich.console import Console
from rich.progress import track
from rich.table import Table

from evals.easy_vqa.prompts import CAPTIONS
from evals.easy_vqa.shapes_and_colors import score
from evals.generated import generate_images
from liquid_train.checkpoint.folder import model_folder
from liquid_train.generate.session import open_model
from liquid_train.image_tokenizer.opening import open_image_tokenizer
from liquid_train.image_tokenizer.settings import VQSettings
from liquid_train.measurement.measurement import ModelHandle

SCALES = [1.0, 1.5, 2.0, 3.0, 5.0, 7.0]  # 1: no guidance
PER_PROMPT = 10


def scores(run: str, scales: list[float]) -> list[dict[str, float]]:
    """Of the run's newest checkpoint, at every scale with the same seeds."""
    session = open_model(model_folder(run), "auto", vq=VQSettings(config="auto", checkpoint="auto"))
    tokenizer = open_image_tokenizer(session.card.vq, parts=("decoder",))
    handle = ModelHandle.of(session, tokenizer)
    prompts = [caption for caption in CAPTIONS for _ in range(PER_PROMPT)]
    found = []
    for scale in track(scales, "guidance scales", console=Console(stderr=True)):
        generated = generate_images(
            handle, prompts, seed=0, guidance=scale, temperature=0.8, top_k=None, batch_size=120
        )
        found.append(score(generated.pixels, PER_PROMPT))
    return found


def plot(path: Path, scales: list[float], found: list[dict[str, float]]) -> None:
    figure, axes = plt.subplots(figsize=(5, 3))
    for key, label in (("right_color", "right colour"), ("right_shape", "right shape")):
        axes.plot(scales, [100 * f[key] for f in found], marker="o", label=label)
    axes.set(xlabel="guidance scale (1 = none)", ylabel="% of 240 images", ylim=(0, 100))
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120, bbox_inches="tight")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guidance", description=__doc__)
    parser.add_argument("run", help="a run of the quickstart, a checkpoint or a model/ folder")
    parser.add_argument("--scales", type=float, nargs="+", default=SCALES, help=f"guidance scales (default: {SCALES})")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw them")
    args = parser.parse_args(argv)
    found = scores(args.run, args.scales)
    table = Table("guidance", "right colour", "right shape", "distinct of 10, least varied prompt")
    for scale, f in zip(args.scales, found, strict=True):
        table.add_row(f"{scale:g}", f"{f['right_color']:.1%}", f"{f['right_shape']:.1%}", f"{f['distinct_min']:g}")
    Console().print(table)
    if args.plot:
        plot(args.plot, args.scales, found)


if __name__ == "__main__":
    main()
