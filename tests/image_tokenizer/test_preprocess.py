"""Images of every kind to RGB, and what is refused: by what a viewer shows, computed apart from the code."""

import io
import struct
import zlib
from itertools import product

import numpy as np
import pytest
from PIL import Image

from liquid_train.image_tokenizer import preprocess as images
from liquid_train.image_tokenizer.preprocess import READ_ERRORS, UnusableImage, on_white, read_rgb, reason

RNG = np.random.default_rng(0)
# EXIF's definition: (row, column) of the stored pixel that is shown at row r and column c, in a stored image of h
# rows and w columns.
SHOWN_FROM = {
    1: lambda r, c, h, w: (r, c),
    2: lambda r, c, h, w: (r, w - 1 - c),
    3: lambda r, c, h, w: (h - 1 - r, w - 1 - c),
    4: lambda r, c, h, w: (h - 1 - r, c),
    5: lambda r, c, h, w: (c, r),
    6: lambda r, c, h, w: (h - 1 - c, r),
    7: lambda r, c, h, w: (h - 1 - c, w - 1 - r),
    8: lambda r, c, h, w: (c, w - 1 - r),
}


def noise(*shape, dtype=np.uint8):
    return RNG.integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype)


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def why(content):
    with pytest.raises(READ_ERRORS) as caught:
        read_rgb(content)
    return reason(caught.value)


def over_white(rgba):
    """[h, w, 4] -> [h, w, 3], one value at a time."""
    h, w = rgba.shape[:2]
    out = np.zeros((h, w, 3), np.uint8)
    for r, c, i in product(range(h), range(w), range(3)):
        a = rgba[r, c, 3] / 255.0
        out[r, c, i] = int((1 - a) * 255 + a * rgba[r, c, i])
    return out


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("kind", "mode"), [("PNG", "RGB"), ("PNG", "RGBA"), ("PNG", "L"), ("TIFF", "RGB"), ("WEBP", "RGB")]
)
def test_exif_orientation(kind, mode, orientation):
    h, w = 3, 5
    pixels = noise(h, w) if mode == "L" else noise(h, w, len(mode))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    result = read_rgb(saved(Image.fromarray(pixels), kind, exif=exif, **options))
    stored = over_white(pixels) if mode == "RGBA" else np.repeat(pixels[:, :, None], 3, 2) if mode == "L" else pixels
    assert result.shape == ((h, w, 3) if orientation < 5 else (w, h, 3))
    for r, c in product(range(result.shape[0]), range(result.shape[1])):
        assert np.array_equal(result[r, c], stored[SHOWN_FROM[orientation](r, c, h, w)])


def test_exif_of_a_16_bit_image_and_of_a_jpeg():
    exif = Image.Exif()
    exif[0x0112] = 6
    grey = noise(3, 5, dtype=np.uint16)
    plain, turned = (read_rgb(saved(Image.fromarray(grey), "PNG", **o)) for o in ({}, {"exif": exif}))
    assert np.array_equal(turned, np.rot90(plain, -1))
    content = saved(Image.fromarray(noise(16, 32, 3)), "JPEG", exif=exif)
    assert np.array_equal(read_rgb(content), np.rot90(np.asarray(Image.open(io.BytesIO(content))), -1))


@pytest.mark.parametrize(
    "exif",
    [b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"],
)
def test_damaged_exif_leaves_the_image_as_it_is(exif):
    content = saved(Image.fromarray(noise(16, 32, 3)), "JPEG", exif=exif)
    assert read_rgb(content).shape == (16, 32, 3)


@pytest.mark.parametrize("value", [0, 9, 77])
def test_an_orientation_that_does_not_exist_changes_nothing(value):
    exif = Image.Exif()
    exif[0x0112] = value
    pixels = noise(3, 5, 3)
    assert np.array_equal(read_rgb(saved(Image.fromarray(pixels), "PNG", exif=exif)), pixels)


def test_transparency_lies_on_white():
    rgba = np.zeros((256, 256, 4), np.uint8)  # every pair of a value and an alpha
    rgba[:, :, :3] = np.arange(256)[:, None, None]
    rgba[:, :, 3] = np.arange(256)[None, :]
    result = read_rgb(saved(Image.fromarray(rgba), "PNG"))
    assert np.array_equal(result, over_white(rgba))
    assert (result[:, 255, 0] == np.arange(256)).all() and (result[:, 0] == 255).all()
    la = np.stack([noise(7, 9), noise(7, 9)], 2)
    assert np.array_equal(read_rgb(saved(Image.fromarray(la), "PNG")), over_white(la[:, :, [0, 0, 0, 1]]))


def test_a_large_image_is_laid_on_white_in_strips(monkeypatch):
    rgba = noise(13, 10, 4)
    whole = on_white(rgba)
    monkeypatch.setattr(images, "STRIP", 35)  # three rows at once
    assert np.array_equal(on_white(rgba), whole) and np.array_equal(whole, over_white(rgba))
    monkeypatch.setattr(images, "STRIP", 4)
    assert np.array_equal(on_white(rgba), whole)


def test_palettes():
    palette = Image.new("P", (4, 1))
    colors = [10, 20, 30, 200, 100, 50, 1, 2, 3, 90, 91, 92]
    palette.putpalette(colors)
    palette.putdata([0, 1, 2, 3])
    rgb = np.array(colors, np.uint8).reshape(1, 4, 3)
    assert np.array_equal(read_rgb(saved(palette, "PNG")), rgb)
    one, several = (
        read_rgb(saved(palette, "PNG", transparency=1)),
        read_rgb(saved(palette, "PNG", transparency=bytes([255, 128, 0, 7]))),
    )
    assert np.array_equal(one, over_white(np.dstack([rgb, np.array([[255, 0, 255, 255]], np.uint8)])))
    assert np.array_equal(several, over_white(np.dstack([rgb, np.array([[255, 128, 0, 7]], np.uint8)])))


def test_a_transparent_colour_of_an_rgb_and_of_a_grey_png():
    pixels = np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)
    assert read_rgb(saved(Image.fromarray(pixels), "PNG", transparency=(4, 5, 6))).tolist() == [
        [[1, 2, 3], [255, 255, 255]]
    ]
    grey = Image.fromarray(np.array([[7, 8]], np.uint8))
    assert read_rgb(saved(grey, "PNG", transparency=8)).tolist() == [[[7] * 3, [255] * 3]]


def test_grey_and_one_bit():
    grey, bits = noise(5, 7), noise(5, 7) > 127
    assert np.array_equal(read_rgb(saved(Image.fromarray(grey), "PNG")), np.repeat(grey[:, :, None], 3, 2))
    assert np.array_equal(
        read_rgb(saved(Image.fromarray(bits), "PNG")), np.repeat(bits[:, :, None] * np.uint8(255), 3, 2)
    )


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_scaled(kind):
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    image = Image.fromarray(values)
    assert image.mode == "I;16"
    result = read_rgb(saved(image, kind))
    assert (
        np.array_equal(result[:, :, 0], np.round(values / 257.0).astype(np.uint8))
        and (result == result[:, :, :1]).all()
    )
    assert result[0, 0, 0] == 0 and result[255, 255, 0] == 255 and len(np.unique(result)) == 256


def test_values_without_a_known_range_are_refused():
    with pytest.raises(UnusableImage, match="values beyond 16 bits"):
        read_rgb(saved(Image.fromarray(np.array([[0, 70000]], np.int32)), "TIFF"))
    assert why(saved(Image.fromarray(np.array([[0.5]], np.float32)), "TIFF")) == "floating-point image"


def test_cmyk_jpeg():
    content = saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)  # no cyan: red
    assert Image.open(io.BytesIO(content)).mode == "CMYK"
    assert np.abs(read_rgb(content).astype(int) - (255, 0, 0)).max() <= 3


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_of_an_animation(kind):
    first, second = Image.new("RGB", (8, 6), (255, 0, 0)), Image.new("RGB", (8, 6), (0, 0, 255))
    options = {"lossless": True} if kind == "WEBP" else {}
    content = saved(first, kind, save_all=True, append_images=[second], **options)
    assert Image.open(io.BytesIO(content)).n_frames == 2
    assert np.array_equal(read_rgb(content), np.asarray(first))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_truncated_images_are_broken(kind, share, tmp_path):
    content = saved(Image.fromarray(noise(64, 64, 3)), kind)
    assert why(content[: int(share * len(content))]) == "broken image"
    (tmp_path / "cut").write_bytes(content[: int(share * len(content))])
    assert why(tmp_path / "cut") == "broken image"


def test_a_png_with_a_wrong_checksum_or_broken_data():
    content = bytearray(saved(Image.fromarray(noise(64, 64, 3)), "PNG"))
    content[len(content) // 2] ^= 0xFF
    assert why(bytes(content)) == "broken image"


def test_what_is_no_image(tmp_path):
    (tmp_path / "page.jpg").write_text("<!DOCTYPE html><html><body>404</body></html>")
    (tmp_path / "empty.png").write_bytes(b"")
    assert why(tmp_path / "page.jpg") == why(tmp_path / "empty.png") == why(b"") == why(b"\0" * 1000) == "not an image"
    for missing in (tmp_path / "nothing.png", tmp_path / "page.jpg" / "below.png", tmp_path):
        assert why(missing) == "missing image"


def test_postscript_is_not_run():
    assert why(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n") == "not an image"


def png(width, height):
    """A PNG whose header promises width x height pixels and whose data is one row."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("width", "height"), [(50_000, 50_000), (9_500, 9_500), (13_300, 13_300), (2**31 - 1, 2**31 - 1), (1, 2**31 - 1)]
)
def test_bombs_are_refused_by_their_header(width, height, monkeypatch):
    def load(self):
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    assert why(png(width, height)) == "too many pixels"


def test_an_image_within_the_limit_is_decoded():
    assert why(png(9_000, 9_000)) == "broken image"  # its data is one row


def test_reasons_of_the_system_are_named(tmp_path):
    assert reason(PermissionError(13, "Permission denied")) == "unreadable image: Permission denied"
    assert reason(OSError(5, "Input/output error")) == "unreadable image: Input/output error"
    assert reason(OSError("image file is truncated")) == "broken image" and reason(MemoryError()) == "too many pixels"


def test_random_damage_raises_nothing_but_read_errors():
    rgba = Image.fromarray(noise(12, 20, 4))
    exif = Image.Exif()
    exif[0x0112] = 6
    contents = [
        saved(rgba, "PNG", exif=exif),
        saved(rgba.convert("RGB"), "JPEG", exif=exif),
        saved(rgba.convert("P"), "GIF"),
        saved(rgba, "WEBP", exif=exif),
    ]
    ok = 0
    for content in contents:
        for _ in range(150):
            damaged = bytearray(content)
            for place in RNG.integers(0, RNG.choice([40, len(content)]), 4):
                damaged[place] = RNG.integers(256)
            try:
                pixels = read_rgb(bytes(damaged))
            except READ_ERRORS as error:
                assert reason(error)
            else:
                ok += 1
                assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
    assert 0 < ok < 600
