"""Crops against an independent statement of the published way, and lists of sizes."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from data_prep.encode.crops import AREA_TOLERANCE, Crop, default_sizes, make_crop
from liquid_train.config.compose import load
from liquid_train.image_tokenizer.preprocess import UnusableImage, cover, nearest_size

DEFAULT = ((704, 384), (576, 448), (512, 512), (448, 576), (384, 704))


def image(width, height, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def published_center(pixels, target):
    """The published tokenizer: the shorter side to `target`, both sides rounded, Lanczos, centre square at floored
    offsets."""
    image = Image.fromarray(pixels)
    width, height = image.size
    scale = target / min(width, height)
    image = image.resize((round(scale * width), round(scale * height)), Image.Resampling.LANCZOS)
    left = math.floor((image.size[0] - target) / 2)
    top = math.floor((image.size[1] - target) / 2)
    return np.array(image)[top : top + target, left : left + target]


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([8, 16, 24, 32, 48]))
@example(33, 49, 32)  # an odd rest
@example(48, 31, 32)
@example(32, 32, 32)
@example(1, 1, 8)
def test_center_is_the_published_way(width, height, size):
    pixels = image(width, height)
    cropped, info = Crop("center", 8, size, (), None)(pixels)
    assert cropped.dtype == np.uint8 and np.array_equal(cropped, published_center(pixels, size))
    assert info == {"original_width": width, "original_height": height}


def test_an_image_of_the_right_size_is_left_as_it_is():
    pixels = image(32, 32)
    assert np.array_equal(Crop("center", 8, 32)(pixels)[0], pixels)
    assert np.array_equal(Crop("multiratio", 8, 32, ((32, 32),))(pixels)[0], pixels)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 2000), st.integers(1, 2000))
@example(704, 384)
@example(1, 1)
def test_multiratio_takes_the_nearest_aspect(width, height):
    crop = make_crop("multiratio", 512, None, None, downsampling=16, resolution=256)
    chosen = nearest_size(crop.sizes, width, height)

    def distance(size):  # how far the aspects are apart, as an exact ratio of 1 or more
        ratio = Fraction(size[0] * height, size[1] * width)
        return max(ratio, 1 / ratio)

    assert chosen in crop.sizes and distance(chosen) == min(map(distance, crop.sizes))


@pytest.mark.parametrize(
    ("width", "height", "size"), [(70, 40, (48, 24)), (40, 70, (24, 48)), (50, 51, (32, 32)), (31, 16, (48, 24))]
)
def test_multiratio_covers_the_size_and_cuts_the_centre(width, height, size):
    crop = Crop("multiratio", 8, 32, ((48, 24), (32, 32), (24, 48)), 2.0)
    pixels = image(width, height)
    result, info = crop(pixels)
    assert result.shape == (size[1], size[0], 3) and info == {
        "original_width": width,
        "original_height": height,
        "multiratio": True,
    }
    scale = max(size[0] / width, size[1] / height)
    scaled = Image.fromarray(pixels).resize((round(scale * width), round(scale * height)), Image.Resampling.LANCZOS)
    left, top = (scaled.width - size[0]) // 2, (scaled.height - size[1]) // 2
    assert min(left, top) == 0 and np.array_equal(result, np.array(scaled)[top : top + size[1], left : left + size[0]])


def test_the_published_list():
    assert default_sizes(512, 16, 2.0) == DEFAULT
    assert make_crop("multiratio", None, None, 2.0, downsampling=16, resolution=512).sizes == DEFAULT


@given(st.sampled_from([4, 8, 16, 32]), st.integers(1, 40), st.sampled_from([None, 1.0, 1.5, 2.0, 3.0, 4.0]))
def test_default_sizes_fit_every_vq(downsampling, steps, max_aspect):
    size = steps * downsampling
    sizes = default_sizes(size, downsampling, max_aspect)
    assert (size, size) in sizes and len(set(sizes)) == len(sizes)
    for width, height in sizes:
        assert (
            width % downsampling == 0 == height % downsampling and abs(width * height / size**2 - 1) <= AREA_TOLERANCE
        )
        assert max(width, height) <= (max_aspect or 2.0) * min(width, height) and (height, width) in sizes
    assert make_crop("multiratio", size, None, max_aspect, downsampling=downsampling, resolution=8).sizes == sizes


@pytest.mark.parametrize(
    ("width", "height", "kept"),
    [(64, 32, True), (32, 64, True), (65, 32, False), (32, 65, False), (33, 16, False), (40, 40, True)],
)
@pytest.mark.parametrize("kind", ["none", "center", "multiratio"])
def test_an_aspect_above_2_is_dropped(kind, width, height, kept):
    crop = Crop(kind, 1, 16, ((16, 16),), 2.0)
    if kept:
        crop(image(width, height))
        return
    with pytest.raises(UnusableImage, match="^aspect ratio above 2$"):
        crop(image(width, height))
    Crop(kind, 1, 16, ((16, 16),), None)(image(width, height))


@pytest.mark.parametrize(("width", "height"), [(63, 64), (64, 63), (65, 72), (64, 4)])
def test_none_takes_multiples_only(width, height):
    with pytest.raises(UnusableImage, match="^sides not multiples of 8$"):
        Crop("none", 8, 64, max_aspect=None)(image(width, height))


def test_none_leaves_the_pixels_as_they_are():
    pixels = image(72, 40)
    result, info = Crop("none", 8, 64)(pixels)
    assert np.array_equal(result, pixels) and info == {}


def test_a_thread_of_an_image_does_not_fill_the_memory(monkeypatch):
    def resize(*_, **__):
        raise AssertionError("resized")

    monkeypatch.setattr(Image.Image, "resize", resize)
    with pytest.raises(UnusableImage, match="too many pixels once scaled"):  # 512 x 51,200,000 pixels
        Crop("center", 16, 512, (), None)(np.zeros((1, 100_000, 3), np.uint8))


def test_cover_reaches_the_size_where_rounding_would_not(monkeypatch):
    for width in range(1, 60):
        assert cover(image(width, 37), (24, 40)).shape == (40, 24, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("center", 500, None), r"tokenize.size=500: must be a multiple of 16, the VQ's downsampling"),
        (("multiratio", 500, None), r"tokenize.size=500: must be a multiple of 16"),
        (
            ("multiratio", 512, ["512x500"]),
            r"tokenize.sizes: 512x500: both sides must be multiples of 16, the VQ's downsampling",
        ),
        (
            ("multiratio", 512, ["512x256"]),
            r"tokenize.sizes: 512x256 has 131,072 pixels, tokenize.size=512 asks for about 262,144: keep within 20%, "
            r"or change",
        ),
        (("multiratio", 512, ["512"]), r"tokenize.sizes: 512: a size is WIDTHxHEIGHT in pixels, for example 704x384"),
        (("multiratio", 512, ["0x16"]), r"tokenize.sizes: 0x16: a size is"),
        (("multiratio", 512, ["-16x16"]), r"tokenize.sizes: -16x16: a size is"),
    ],
)
def test_sizes_that_cannot_work_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_crop(*arguments, 2.0, downsampling=16, resolution=512)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tokenize.crop=middle"], "tokenize.crop=middle.*center"),
        (
            ["tokenize.size=64"],
            "tokenize.size=64: tokenize.crop=none takes images as they are; use center or multiratio",
        ),
        (
            ["tokenize.crop=center", "tokenize.sizes=[64x64]"],
            "tokenize.sizes: only tokenize.crop=multiratio has a list of sizes, not center",
        ),
        (
            ["tokenize.max_aspect=0.5"],
            "tokenize.max_aspect=0.5: must be 1 or more, or null: no limit",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        load("tokenize", ["tokenize.source=pairs", "tokenize.output=out", *overrides])


def test_the_recipe_tells_crops_apart():
    made = [
        make_crop(kind, None, sizes, aspect, downsampling=16, resolution=512).recipe()
        for kind, sizes, aspect in [
            ("none", None, 2.0),
            ("center", None, 2.0),
            ("multiratio", None, 2.0),
            ("multiratio", ["512x512"], 2.0),
            ("center", None, None),
        ]
    ]
    assert all(a != b for i, a in enumerate(made) for b in made[:i])
