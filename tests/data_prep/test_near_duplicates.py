"""The hashes that KEY.json keeps, and the search for samples that are alike by them."""

from __future__ import annotations

import numpy as np
import pytest

from data_prep.encode.minhash import parse_text_hash, similarity, text_hash
from data_prep.encode.perceptual_hash import image_hash, parse_image_hash
from data_prep.tools.near_duplicates import (
    BothLikeness,
    Hashes,
    ImageLikeness,
    Likeness,
    TextLikeness,
    matches,
    near_duplicates,
)
from tests.data_prep.test_filter import altered, scene


def similar(a: str, b: str) -> float:
    signatures = [parse_text_hash(text_hash(text) or "")[None] for text in (a, b)]
    return float(similarity(*signatures)[0])


def pieces(text: str) -> set[str]:
    return {text[i : i + 8] for i in range(len(text) - 7)}


def test_similarity_of_texts() -> None:
    """The estimate is right on average, and within 0.05 of the share of common pieces, for short and for long texts."""
    errors = []
    for seed in range(40):
        generator = np.random.default_rng(seed)
        words = [str(word) for word in generator.integers(10**7, 10**8, int(generator.choice([8, 60, 600])))]
        changed = words[: len(words) * 9 // 10] + [str(word) for word in generator.integers(10**7, 10**8, 2)]
        a, b = " ".join(words), " ".join(changed)
        errors.append(similar(a, b) - len(pieces(a) & pieces(b)) / len(pieces(a) | pieces(b)))
    assert abs(np.mean(errors)) < 0.02 and np.std(errors) < 0.06


def test_what_a_text_hash_overlooks() -> None:
    assert text_hash("A red, CIRCLE!\n") == text_hash("  a red circle") != text_hash("a blue circle")
    assert similar("Die Würde des Menschen ist unantastbar", "die wu\u0308rde des menschen ist unantastbar.") == 1.0
    assert similar("猫は窓のそばに座っている。外は雨だ", "犬が庭を走り回っている。今日は晴れだ") < 0.3
    assert text_hash(" …!?\n") is None and text_hash("") is None
    # texts of one piece: a signature of 64 equal bytes would make one pair in 256 the same
    assert len({text_hash(f"{n:05d}") for n in range(2000)}) == 2000
    assert len(text_hash("\ud800 half an emoji") or "") == 128


@pytest.mark.parametrize("shape", [(1, 1), (1, 900), (900, 1), (64, 64), (300, 1000), (2000, 3)])
def test_images_of_any_size(shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    bits, colors = parse_image_hash(image_hash(pixels))
    assert 0 <= bits < 2**64 and colors.shape == (27,)
    assert image_hash(pixels) == image_hash(pixels.copy())


def test_copies_of_an_image() -> None:
    scenes = Hashes(60)
    for n in range(30):
        scenes.set_image(n, *parse_image_hash(image_hash(scene(n, 256))))
        scenes.set_image(30 + n, *parse_image_hash(image_hash(altered(scene(n, 256)))))
    like = near_duplicates(ImageLikeness(10, 24), scenes, np.arange(60))
    assert like.tolist() == [-1] * 30 + list(range(30))


def random_hashes(seed: int, samples: int) -> Hashes:
    """Many samples around few centres, some equal, some in chains of small steps, some without an image or a text."""
    generator, hashes = np.random.default_rng(seed), Hashes(samples)
    bits = generator.integers(0, 2**63, samples // 8, dtype=np.uint64)
    texts = generator.integers(0, 256, (samples // 6, 64), np.uint8)
    for n in range(samples):
        value = int(generator.choice(bits))
        for place in generator.integers(0, 64, generator.integers(0, 9)):
            value ^= 1 << int(place)
        if generator.random() < 0.9:
            hashes.set_image(n, value, generator.integers(100, 120, 27).astype(np.uint8))
        if generator.random() < 0.9:
            text = texts[generator.integers(len(texts))].copy()
            text[generator.integers(0, 64, generator.integers(0, 15))] = 7
            hashes.set_text(n, text)
    return hashes


def one_by_one(likeness: Likeness, hashes: Hashes, rows: np.ndarray) -> list[int]:
    """What near_duplicates does, by comparing every sample with all that were kept before it."""
    kept, like = list[int](), list[int]()
    for row in rows:
        before = np.array(kept, np.int64)
        alike = before[likeness.alike(hashes, before, hashes, np.full(len(before), row))]
        like.append(int(alike[0]) if len(alike) else -1)
        kept += [] if len(alike) else [row]
    return like


@pytest.mark.parametrize(
    "likeness",
    [
        ImageLikeness(0, 255),
        ImageLikeness(3, 12),
        ImageLikeness(10, 24),
        TextLikeness(0.8),
        BothLikeness(ImageLikeness(10, 24), TextLikeness(0.6)),
    ],
)
def test_as_comparing_all_pairs(likeness: Likeness) -> None:
    found = 0
    for seed in range(3):
        hashes = random_hashes(seed, 500)
        rows = np.flatnonzero(likeness.usable(hashes))
        like = near_duplicates(likeness, hashes, rows)
        assert like.tolist() == one_by_one(likeness, hashes, rows)
        found += (like >= 0).sum()
        mine, theirs = rows[: len(rows) // 3], rows[len(rows) // 3 :]
        like, which = matches(likeness, hashes, mine, hashes, theirs)
        alike = np.array([likeness.alike(hashes, np.full(len(theirs), row), hashes, theirs) for row in mine])
        assert like.tolist() == [int(theirs[pair.argmax()]) if pair.any() else -1 for pair in alike]
        assert which.tolist() == alike.any(axis=0).tolist()
    assert found


def test_nobody_to_compare() -> None:
    hashes, nobody = Hashes(3), np.zeros(0, np.int64)
    assert near_duplicates(TextLikeness(0.8), hashes, nobody).tolist() == []
    like, which = matches(ImageLikeness(10, 24), hashes, np.arange(3), hashes, nobody)
    assert like.tolist() == [-1, -1, -1] and which.tolist() == []
