"""Pictures drawn from the 24 captions of easy-VQA: right colour, right shape, how many are different, how far from real ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from data_prep.easy_vqa import COLORS, SHAPES, load_split
from evals.drawn_shapes import judge
from evals.frechet import Gaussian, encoder_features, feature_name, frechet_distance
from liquid_train.generate.pictures import decode
from liquid_train.generate.sampler import draw
from liquid_train.generate.session import Session
from liquid_train.image_tokenizer import ImageTokenizer

# Mean absolute difference of two pictures (0 to 255) from which they count as different. Measured on the test pictures: two of
# one caption differ by more than 4 in 99.9% of the pairs (2.0 at least); one picture encoded and decoded twice, so with a quarter
# of its codes changed, differs from itself by less than 2 in 95%.
DIFFERENT = 2.0
CAPTIONS = [f"a {color} {shape}" for shape in SHAPES for color in COLORS]


@dataclass(frozen=True)
class RealPictures:
    """pixels uint8 [N, H, W, 3]; color and shape are None where the answers leave them open."""

    pixels: np.ndarray
    colors: list[str | None]
    shapes: list[str | None]


def real_pictures() -> RealPictures:
    """easy-VQA's test pictures as they are (not through the VQ). Raises ValueError when the package is missing."""
    try:
        images = load_split("test")
    except ValueError as error:
        remedy = "pip install 'liquid-train[demo]', or set images_per_prompt=0"
        raise ValueError(f"images_per_prompt: drawings are judged beside the pictures of the easy-vqa package, which is missing: {remedy}") from error
    pixels = np.stack([np.asarray(Image.open(i.path).convert("RGB")) for i in images])
    return RealPictures(pixels, [i.color for i in images], [i.shape for i in images])


def named(prompt: str) -> tuple[str | None, str | None]:
    """The colour and the shape that a prompt names, None where it names none."""
    words = prompt.lower().split()
    return next((c for c in COLORS if c in words), None), next((s for s in SHAPES if s in words), None)


def distinct(pixels: Sequence[np.ndarray]) -> int:
    """How many pictures differ visibly from all that were counted before them."""
    counted: list[np.ndarray] = []
    for picture in pixels:
        now = picture.astype(np.float32)
        if all(np.abs(now - other).mean() > DIFFERENT for other in counted):
            counted.append(now)
    return len(counted)


def judge_accuracy(real: RealPictures) -> dict[str, float]:
    """How often the judge is right on real pictures whose colour or shape is known."""
    verdicts = [judge(p) for p in real.pixels]
    color = [v.color == truth for v, truth in zip(verdicts, real.colors, strict=True) if truth]
    shape = [v.shape == truth for v, truth in zip(verdicts, real.shapes, strict=True) if truth]
    return {"judge_color_accuracy": float(np.mean(color)), "judge_shape_accuracy": float(np.mean(shape))}


def score(pixels: np.ndarray, per_prompt: int) -> dict[str, Any]:
    """pixels [24 * per_prompt, H, W, 3] in the order of CAPTIONS -> shares of right colours and shapes and distinct pictures."""
    rows: list[dict[str, Any]] = []
    for n, prompt in enumerate(CAPTIONS):
        own = pixels[n * per_prompt : (n + 1) * per_prompt]
        color, shape = named(prompt)
        verdicts = [judge(p) for p in own]
        right = {"right_color": [v.color == color for v in verdicts], "right_shape": [v.shape == shape for v in verdicts]}
        rows.append({"prompt": prompt, **{key: float(np.mean(values)) for key, values in right.items()}, "distinct": distinct(list(own))})
    counts = [row["distinct"] for row in rows]
    return {
        "count": len(pixels),
        "images_per_prompt": per_prompt,
        "right_color": float(np.mean([row["right_color"] for row in rows])),
        "right_shape": float(np.mean([row["right_shape"] for row in rows])),
        "distinct_of_10": min(counts) if per_prompt == 10 else None,
        "distinct_min": min(counts),
        "distinct_mean": float(np.mean(counts)),
        "prompts": rows,
    }


def distances(tokenizer: ImageTokenizer, real: RealPictures, drawn: np.ndarray, reconstructed: np.ndarray) -> dict[str, Any]:
    """Frechet distances to the real pictures, of the drawn ones and, as the best a model can do, of real ones through the VQ."""
    reference = Gaussian.of(encoder_features(tokenizer, real.pixels))
    return {
        "frechet_distance": frechet_distance(Gaussian.of(encoder_features(tokenizer, drawn)), reference),
        "frechet_of_reconstructions": frechet_distance(Gaussian.of(encoder_features(tokenizer, reconstructed)), reference),
        "frechet_features": feature_name(tokenizer),
        "frechet_reference": f"{len(real.pixels)} original test pictures; reconstructions: {len(reconstructed)} of them through the VQ",
    }


def evaluate(
    session: Session,
    tokenizer: ImageTokenizer,
    test_codes: Sequence[np.ndarray],
    *,
    per_prompt: int,
    seed: int,
    guidance: float,
    temperature: float,
    top_k: int | None,
    batch_size: int,
    progress: Callable[[str, int, int], None],
) -> tuple[dict[str, Any], np.ndarray]:
    """(evals/t2i.json without its step, the drawn pixels [24 * per_prompt, H, W, 3]); picture i is drawn with seed + i.

    test_codes: codes of test pictures, for the reconstructions. Raises ValueError when easy-VQA's package is missing.
    """
    real = real_pictures()
    prompts = [caption for caption in CAPTIONS for _ in range(per_prompt)]
    codes = draw(
        session.model, session.vocabulary, prompts, seeds=[seed + i for i in range(len(prompts))], grid=session.grid, guidance=guidance,
        temperature=temperature, top_k=top_k, batch_size=batch_size, suffix=session.card.prompt, progress=lambda *p: progress("codes", *p),
    )  # fmt: skip
    pixels = decode(tokenizer, codes)
    settings = {"guidance": guidance, "temperature": temperature, "top_k": top_k, "seed": seed}
    reconstructed = decode(tokenizer, np.stack(test_codes[: max(len(pixels), 2)]))
    return {**score(pixels, per_prompt), **distances(tokenizer, real, pixels, reconstructed), **judge_accuracy(real), **settings}, pixels
