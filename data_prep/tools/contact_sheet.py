"""A contact sheet: images next to what the VQ makes of their codes, with the caption under them, as one image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

BOX = 192  # pixels: every image is scaled to fit into a square of this side
GAP = 14
FONT_SIZE = 13
LINE = 17  # pixels from one line of text to the next
CAPTION_LINES = 3
SHAPE = 1.5  # width : height that the sheet aims at
# comes with matplotlib: Latin, Greek, Cyrillic and more
DEJAVU = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


@dataclass(frozen=True)
class Tile:
    """Pixels uint8 [h, w, 3]; original is None where the images are not there."""

    original: np.ndarray | None
    decoded: np.ndarray
    caption: str


def captioned_sheet(tiles: list[Tile], title: str) -> np.ndarray:
    """Tiles in reading order under a title: uint8 [height, width, 3]."""
    font = ImageFont.truetype(str(DEJAVU), FONT_SIZE)
    images_a_tile = 2 if any(tile.original is not None for tile in tiles) else 1
    cell = images_a_tile * BOX + (images_a_tile - 1) * 4 + GAP, BOX + CAPTION_LINES * LINE + GAP
    columns = max(1, min(len(tiles), round(math.sqrt(SHAPE * len(tiles) * cell[1] / cell[0]))))
    width = max(columns * cell[0] + GAP, 480)
    heading = _wrap(title, font, width - 2 * GAP, 3)
    top = GAP + len(heading) * LINE + GAP // 2
    sheet = Image.new("RGB", (width, top + math.ceil(len(tiles) / columns) * cell[1]), "white")
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(heading):
        draw.text((GAP, GAP + number * LINE), line, "black", font)
    for number, tile in enumerate(tiles):
        left, y = GAP + number % columns * cell[0], top + number // columns * cell[1]
        for place, pixels in enumerate([tile.decoded] if images_a_tile == 1 else [tile.original, tile.decoded]):
            if pixels is not None:
                _paste(sheet, pixels, left + place * (BOX + 4), y)
        for row, line in enumerate(_wrap(tile.caption, font, cell[0] - GAP, CAPTION_LINES)):
            draw.text((left, y + BOX + 3 + row * LINE), line, "black", font)
    return np.asarray(sheet)


def _paste(sheet: Image.Image, pixels: np.ndarray, left: int, top: int) -> None:
    """Fit an image into its box: small ones are enlarged by integer factors, so that their pixels stay sharp."""
    image = Image.fromarray(pixels)
    scale = BOX / max(image.size)
    size = (int(scale) if scale >= 2 else scale) if scale > 1 else scale
    method = Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS
    image = image.resize((max(1, round(image.width * size)), max(1, round(image.height * size))), method)
    sheet.paste(image, (left + (BOX - image.width) // 2, top + (BOX - image.height) // 2))


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int, lines: int) -> list[str]:
    """Text in at most `lines` lines of `width` pixels, broken at spaces or inside longer words; an ellipsis where it is
    cut."""
    words = "".join(c if c.isprintable() else " " for c in text[: 40 * lines * max(1, width // FONT_SIZE)]).split()
    wrapped: list[str] = []
    line = ""
    for word in words:
        while word:
            joined = f"{line} {word}" if line else word
            if font.getlength(joined) <= width:
                line, word = joined, ""
            elif line:
                wrapped.append(line)
                line = ""
            else:
                fits = max(1, next(n for n in range(len(word), 0, -1) if n == 1 or font.getlength(word[:n]) <= width))
                wrapped.append(word[:fits])
                word = word[fits:]
    wrapped += [line] if line else []
    if len(wrapped) <= lines:
        return wrapped
    last = wrapped[lines - 1]
    while last and font.getlength(last + "…") > width:
        last = last[:-1]
    return [*wrapped[: lines - 1], last + "…"]
