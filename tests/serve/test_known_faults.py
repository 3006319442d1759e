"""Known faults of serving and generating: each test says what is right, the reason of its mark what happens today."""

from __future__ import annotations

import asyncio
import base64
import io
import struct
from typing import Any

import pytest
from PIL import Image, ImageFile

from tests.serve.conftest import LIMIT

pytest.importorskip("httpx")
pytest.importorskip("fastapi")


def ico(side: int) -> str:
    """An ICO in base64 that says 64x64 and holds a PNG of side x side."""
    buffer = io.BytesIO()
    Image.new("RGBA", (side, side), (1, 2, 3, 4)).save(buffer, "png")
    png = buffer.getvalue()
    header = struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 64, 64, 0, 0, 1, 32, len(png), 22)
    return base64.b64encode(header + png).decode()


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """Of every image that Pillow decodes: its pixels, and whether the loop that answers everybody waited for it."""
    found, load = [], ImageFile.ImageFile.load

    def watched(image: ImageFile.ImageFile) -> Any:
        try:
            asyncio.get_running_loop()
            found.append((image.width * image.height, True))
        except RuntimeError:
            found.append((image.width * image.height, False))
        return load(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load", watched)
    return found


@pytest.mark.xfail(strict=True, raises=AssertionError, reason="an ICO is decoded before its real size is known")
@pytest.mark.filterwarnings("ignore:Image was not the expected size")
def test_an_image_beyond_the_limit_is_refused_before_it_is_decoded(
    api: tuple[Any, Any], decoded: list[tuple[int, bool]]
) -> None:
    assert api[0].post("/answer", json={"image": ico(400), "question": "what?"}).status_code == 400
    assert all(pixels <= LIMIT for pixels, _ in decoded)


@pytest.mark.xfail(strict=True, raises=AssertionError, reason="an ICO is decoded on the loop to learn its size")
def test_no_image_is_decoded_on_the_loop_that_answers_everybody(
    api: tuple[Any, Any], decoded: list[tuple[int, bool]]
) -> None:
    api[0].post("/answer", json={"image": ico(64), "question": "what?", "max_new_tokens": 2})
    assert not any(on_loop for _, on_loop in decoded)
