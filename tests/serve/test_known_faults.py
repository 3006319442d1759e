"""Known faults of serving and generating: each test says what is right, the reason of its mark what happens today."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageFile

from liquid_train.cli import main
from liquid_train.generate.session import open_model, open_vq
from liquid_train.image_tokenizer.settings import VQSettings
from liquid_train.serve.settings import ServeLimits
from tests import tiny_model

pytest.importorskip("httpx")
pytest.importorskip("fastapi")

GENERATE = {"prompt": "a red circle", "guidance": 1.0}
HALF_A_PAIR = '{"prompt": "\\ud800 x", "guidance": 1.0}'
LIMIT = 10_000  # pixels


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.save(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def api(folder: Path) -> Iterator[tuple[Any, Any]]:
    """A client of the API without a server, and its worker."""
    from fastapi.testclient import TestClient

    from liquid_train.serve.api import build_api
    from liquid_train.serve.engine import Engine
    from liquid_train.serve.image_batches import ImageBatches
    from liquid_train.serve.worker import Worker

    session = open_model(folder, "cpu")
    engine = Engine(session, open_vq(session, VQSettings("auto", "auto")), ServeLimits(pixels=LIMIT))
    worker = Worker(waiting=20)
    with TestClient(build_api(ImageBatches(engine, worker), "tiny"), raise_server_exceptions=False) as client:
        yield client, worker
    worker.close()


def generate(client: Any, body: str) -> int:
    return int(client.post("/generate", content=body, headers={"Content-Type": "application/json"}).status_code)


@pytest.mark.xfail(strict=True, raises=AssertionError, reason="the tokenizer refuses half a surrogate pair: 500")
def test_a_prompt_that_is_no_text_is_the_clients_fault(api: tuple[Any, Any]) -> None:
    assert 400 <= generate(api[0], HALF_A_PAIR) < 500


@pytest.mark.xfail(
    strict=True, raises=AssertionError, reason="a drawing that looks for others to take along fails: 500"
)
def test_a_bad_prompt_fails_no_drawing_that_waits_with_it(api: tuple[Any, Any]) -> None:
    client, worker = api
    go = threading.Event()
    worker.submit(lambda check: go.wait(60), threading.Event())
    bodies = [*(json.dumps({**GENERATE, "seed": n, "temperature": 0.5 + n / 10}) for n in range(3)), HALF_A_PAIR]
    with ThreadPoolExecutor(len(bodies)) as pool:
        replies = []
        try:
            for n, body in enumerate(bodies):
                replies.append(pool.submit(generate, client, body))
                until = time.monotonic() + 60
                while worker.open < n + 2 and not replies[-1].done() and time.monotonic() < until:
                    time.sleep(0.01)
        finally:
            go.set()
        statuses = [reply.result(60) for reply in replies]
    assert statuses[:-1] == [200, 200, 200]


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


@pytest.mark.xfail(strict=True, raises=TypeError, reason="the tokenizer refuses it, and none is answered")
def test_a_question_that_is_no_text_does_not_end_the_others(folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    asked = ["what \ud83d?", "is it red?"]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps({"image": "a.png", "question": q}) + "\n" for q in asked))
    call = [
        "generate",
        "task=i2t",
        f"checkpoint={folder}",
        f"questions={tmp_path / 'q.jsonl'}",
        f"output={tmp_path / 'out'}",
    ]
    assert main([*call, "device=cpu", "max_new_tokens=2"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and isinstance(rows[1]["answer"], str)
