"""The page through gradio's own client: what a browser would send, and what it would be shown."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import tiny_model

pytest.importorskip("gradio")
client = pytest.importorskip("gradio_client")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the page of `liquid serve` in a process of its own."""
    folder = tiny_model.save(tmp_path_factory.mktemp("model"))
    command = [sys.executable, "-m", "liquid_train.cli", "serve", f"checkpoint={folder}", "port=0", "device=cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GRADIO_TEMP_DIR": str(tmp_path_factory.mktemp("gradio"))}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    try:
        assert select.select([process.stdout], [], [], 250)[0], "no address within 250 s"
        yield str(re.search(r"http://127.0.0.1:\d+/ui", process.stdout.readline())[0])  # type: ignore[index]
    finally:
        process.terminate()
        process.wait(timeout=60)


def test_images_come_with_progress_by_row(page: str) -> None:
    job = client.Client(page, verbose=False).submit("a red circle", "64x64", 3.0, 2, 7, api_name="/draw")
    status, gallery = job.result(timeout=200)
    assert status == "2 drawn" and [item["caption"] for item in gallery] == ["seed 7", "seed 8"]
    assert np.asarray(Image.open(gallery[0]["image"])).shape == (64, 64, 3)
    assert any(re.match(r"row \d of 8 ", str(shown[0])) for shown in job.outputs())


def test_what_cannot_be_drawn_is_not_drawn(page: str) -> None:
    status, _ = client.Client(page, verbose=False).predict("  ", "64x64", 3.0, 1, 0, api_name="/draw")
    assert status == "not drawn"


def test_a_question_about_an_uploaded_image_is_answered(page: str, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((80, 90, 3), np.uint8)).save(tmp_path / "a.png")
    message = {"text": "what color is the shape?", "files": [client.handle_file(tmp_path / "a.png")]}
    talk = client.Client(page, verbose=False).predict(message, [], 8, 0.0, api_name="/chat")[0]
    assert [turn["role"] for turn in talk] == ["user", "user", "assistant"]
