"""The HTTP API over a real server: what is good is answered, what is bad is a 4xx with its reason, and one model is
used by one thread."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from liquid_train.cli import main
from liquid_train.model.backbone import ModelCard
from tests import tiny_model

httpx = pytest.importorskip("httpx")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

LIMITS = [
    "limits.characters=200",
    "limits.pictures=2",
    "limits.pixels=10000",
    "limits.body_mib=1",
    "limits.new_tokens=32",
]


def image(width: int = 64, height: int = 64, format: str = "png") -> str:
    """An image file in base64."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=format)
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was trained without a null prompt, so that guidance is refused."""
    path = tiny_model.save(tmp_path_factory.mktemp("model"))
    replace(ModelCard.read(path), null_prompt="").write(path)
    return path


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[str]:
    """The address of `liquid serve` in a process of its own, on a free port; it must end well on SIGTERM."""
    command = [
        sys.executable,
        "-m",
        "liquid_train.cli",
        "serve",
        f"checkpoint={folder}",
        "ui=false",
        "port=0",
        "device=cpu",
        *LIMITS,
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert process.stdout is not None
    try:
        assert select.select([process.stdout], [], [], 200)[0], "no address within 200 s"
        yield str(re.search(r"http://127.0.0.1:\d+", process.stdout.readline())[0])  # type: ignore[index]
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) in (0, -signal.SIGTERM)
    finally:
        process.kill()
        process.wait()


def post(server: str, path: str, body: Any) -> Any:
    return httpx.post(server + path, json=body, timeout=120)


def test_health_says_what_runs_and_how_much_it_takes(server: str) -> None:
    said = httpx.get(server + "/health", timeout=60).json()
    assert said["status"] == "ok" and said["waiting"] == 0
    assert said["sizes"] == ["64x64"] and said["limits"]["pictures"] == 2


def test_images_are_those_of_liquid_generate(server: str, folder: Path, tmp_path: Path) -> None:
    found = post(server, "/generate", {"prompt": "a red circle", "seed": 5, "count": 2, "guidance": 1.0}).json()
    assert [image["seed"] for image in found["images"]] == [5, 6] and (found["width"], found["height"]) == (64, 64)
    for one in found["images"]:
        output = tmp_path / str(one["seed"])
        assert (
            main(
                [
                    "generate",
                    f"checkpoint={folder}",
                    "prompt=a red circle",
                    f"seed={one['seed']}",
                    "guidance=1",
                    f"output={output}",
                    "device=cpu",
                ]
            )
            == 0
        )
        generated = np.asarray(Image.open(io.BytesIO(base64.b64decode(one["png"]))))
        assert (generated == np.asarray(Image.open(output / "00000.png"))).all()


def test_answers_are_those_of_liquid_generate(
    server: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = image(80, 64)
    file = tmp_path / "a.png"
    file.write_bytes(base64.b64decode(content))
    for question in ("what color is the shape?", None):
        asked = [] if question is None else [f"prompt={question}"]
        assert (
            main(
                [
                    "generate",
                    f"checkpoint={folder}",
                    "task=i2t",
                    f"image={file}",
                    "device=cpu",
                    "max_new_tokens=8",
                    *asked,
                ]
            )
            == 0
        )
        expected = capsys.readouterr().out.strip("\n")
        for sent in (content, f"data:image/png;base64,{content}"):
            reply = post(server, "/answer", {"image": sent, "question": question, "max_new_tokens": 8})
            assert reply.status_code == 200 and reply.json()["answer"] == expected


GENERATE = {"prompt": "a red circle", "guidance": 1.0}
BAD = [
    ("/generate", {**GENERATE, "promt": "x"}, 422, "promt: no such key"),
    ("/generate", {}, 422, "prompt"),
    ("/generate", {**GENERATE, "prompt": "  "}, 422, "prompt"),
    ("/generate", {**GENERATE, "prompt": 3}, 422, "prompt"),
    ("/generate", {**GENERATE, "prompt": "x" * 201}, 400, "limits.characters"),
    ("/generate", {**GENERATE, "guidance": "much"}, 422, "guidance"),
    ("/generate", {**GENERATE, "guidance": -1}, 422, "guidance"),
    ("/generate", {**GENERATE, "guidance": 3}, 400, "guidance=1"),  # trained without a null prompt
    ("/generate", {**GENERATE, "size": "-64x64"}, 422, "size"),
    ("/generate", {**GENERATE, "size": "64"}, 422, "size"),
    ("/generate", {**GENERATE, "size": "63x64"}, 400, "multiples"),
    ("/generate", {**GENERATE, "size": "128x128"}, 400, "trained on 64x64"),
    ("/generate", {**GENERATE, "seed": -1}, 422, "seed"),
    ("/generate", {**GENERATE, "seed": 2**32}, 422, "seed"),
    ("/generate", {**GENERATE, "seed": 1.5}, 422, "seed"),
    ("/generate", {**GENERATE, "count": 3}, 400, "limits.pictures"),
    ("/generate", {**GENERATE, "count": 0}, 422, "count"),
    ("/generate", {**GENERATE, "temperature": -1}, 422, "temperature"),
    ("/generate", {**GENERATE, "top_p": 0}, 422, "top_p"),
    ("/generate", {**GENERATE, "top_k": 0}, 422, "top_k"),
    ("/generate", [1], 422, ""),
    ("/answer", {"question": "what?"}, 422, "image"),
    ("/answer", {"image": "", "question": "what?"}, 422, "image"),
    ("/answer", {"image": "not base64!"}, 400, "base64"),
    ("/answer", {"image": base64.b64encode(b"no image").decode()}, 400, "not an image"),
    # cut off after the header
    ("/answer", {"image": base64.b64encode(base64.b64decode(image())[:500]).decode()}, 400, "not an image"),
    ("/answer", {"image": image(200, 100)}, 400, "limits.pixels"),
    ("/answer", {"image": image(), "question": "x" * 201}, 400, "limits.characters"),
    ("/answer", {"image": image(), "max_new_tokens": 33}, 400, "limits.new_tokens"),
    ("/answer", {"image": "A" * 2**20}, 413, "limits.body_mib"),
]


@pytest.mark.parametrize(("path", "body", "status", "word"), BAD)
def test_bad_requests_are_told_why(server: str, path: str, body: Any, status: int, word: str) -> None:
    reply = post(server, path, body)
    assert reply.status_code == status, reply.text
    assert list(reply.json()) == ["error"] and word in reply.json()["error"]


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"prompt=x",
        b"",
        b'{"prompt": "x", "guidance": NaN}',
        b'{"prompt": "x", "guidance": Infinity}',
        b"\xff\xfe",
    ],
)
def test_bodies_that_are_no_json_or_no_number(server: str, content: bytes) -> None:
    reply = httpx.post(server + "/generate", content=content, headers={"Content-Type": "application/json"}, timeout=60)
    assert 400 <= reply.status_code < 500 and reply.json()["error"]


def test_a_body_whose_length_is_not_stated_is_limited_too(server: str) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(40):
            yield b" " * 2**15

    reply = httpx.post(server + "/generate", content=chunks(), headers={"Content-Type": "application/json"}, timeout=60)
    assert reply.status_code == 413 and "limits.body_mib" in reply.json()["error"]


def test_a_form_of_another_page_is_refused(server: str) -> None:
    """A page elsewhere can make a browser post text/plain without asking; the API takes application/json alone."""
    reply = httpx.post(
        server + "/generate", content=json.dumps(GENERATE), headers={"Content-Type": "text/plain"}, timeout=60
    )
    assert reply.status_code == 422 and "application/json" in reply.json()["error"]


def test_wrong_paths_and_methods(server: str) -> None:
    missing, wrong = httpx.get(server + "/nothing", timeout=60), httpx.get(server + "/generate", timeout=60)
    assert missing.status_code == 404 and "/generate" in missing.json()["error"]
    assert wrong.status_code == 405 and wrong.headers["Allow"] == "POST" and wrong.json()["error"]


def test_many_at_once_get_what_they_would_get_alone(server: str) -> None:
    bodies = [{**GENERATE, "seed": n % 3} for n in range(12)]
    alone = {seed: post(server, "/generate", {**GENERATE, "seed": seed}).json()["images"] for seed in range(3)}
    for n in range(2, 12, 5):
        bodies[n] = {**GENERATE, "seed": -n}
    with ThreadPoolExecutor(12) as pool:
        replies = list(pool.map(lambda body: post(server, "/generate", body), bodies))
    for body, reply in zip(bodies, replies, strict=True):
        if int(body["seed"]) < 0:  # type: ignore[call-overload]
            assert reply.status_code == 422
        else:
            assert reply.status_code == 200 and reply.json()["images"] == alone[int(body["seed"])]  # type: ignore[call-overload]


def test_the_line_is_bounded_first_come_first_served_and_can_be_left() -> None:
    from liquid_train.serve.worker import Busy, RequestStopped, Worker

    worker, go, order = Worker(waiting=2), threading.Event(), []
    never, left = threading.Event(), threading.Event()

    def work(name: str) -> Any:
        def turn(check: Any) -> str:
            go.wait(60)
            order.append(name)
            check()
            return name

        return turn

    first, second, third = (worker.submit(work(name), stop) for name, stop in (("a", never), ("b", left), ("c", never)))
    assert worker.open == 3
    with pytest.raises(Busy, match="2 requests are waiting"):
        worker.submit(work("d"), never)
    assert second.cancel() and worker.open == 2
    stopped = threading.Event()
    fourth = worker.submit(work("e"), stopped)
    stopped.set()  # before its turn: it must not begin
    go.set()
    assert first.result(60) == "a" and third.result(60) == "c" and order == ["a", "c"]
    with pytest.raises(RequestStopped):
        fourth.result(60)
    assert worker.waiting == 0
    worker.close()


def test_a_full_line_answers_503_with_retry_after(folder: Path) -> None:
    """The API without a server: drawing is held until the line is full."""
    from fastapi.testclient import TestClient

    from liquid_train.generate.session import open_model, open_vq
    from liquid_train.image_tokenizer.settings import VQSettings
    from liquid_train.serve.api import build_api
    from liquid_train.serve.engine import Engine
    from liquid_train.serve.image_batches import ImageBatches
    from liquid_train.serve.settings import ServeLimits
    from liquid_train.serve.worker import Worker

    session = open_model(folder, "cpu")
    engine, worker = Engine(session, open_vq(session, VQSettings("auto", "auto")), ServeLimits()), Worker(waiting=0)
    go = threading.Event()
    held = worker.submit(lambda check: go.wait(60), threading.Event())
    with TestClient(build_api(ImageBatches(engine, worker), "tiny")) as client:
        reply = client.post("/generate", json=GENERATE)
        assert reply.status_code == 503 and int(reply.headers["Retry-After"]) > 0 and "waiting" in reply.json()["error"]
        go.set()
        held.result(60)
        assert client.post("/generate", json=GENERATE).status_code == 200
    worker.close()


def test_a_client_that_goes_away_stops_its_work_and_leaves_the_line() -> None:
    from liquid_train.serve.api import in_turn
    from liquid_train.serve.worker import RequestStopped, Worker

    class Gone:
        async def is_disconnected(self) -> bool:
            return True

    def work(check: Any) -> None:
        while not never.wait(0.01):  # ends by what check() raises alone
            check()

    worker, never = Worker(waiting=1), threading.Event()

    async def two() -> list[Any]:
        return await asyncio.gather(*(in_turn(worker, Gone(), work) for _ in range(2)), return_exceptions=True)  # type: ignore[arg-type]

    assert [type(error) for error in asyncio.run(two())] == [RequestStopped, RequestStopped]
    assert worker.submit(lambda check: 1, threading.Event()).result(60) == 1
    worker.close()


def test_what_waits_when_the_server_ends_is_told_so() -> None:
    from liquid_train.serve.worker import RequestStopped, Worker

    worker, begun, never = Worker(waiting=1), threading.Event(), threading.Event()

    def work(check: Any) -> None:
        begun.set()
        while not never.wait(0.01):  # ends by what check() raises alone
            check()

    futures = [worker.submit(work, threading.Event()) for _ in range(2)]
    assert begun.wait(60)
    worker.closing.set()
    for future in futures:
        with pytest.raises(RequestStopped, match="the server is ending"):
            future.result(60)
    worker.close()


@pytest.mark.parametrize("template", [True, False])
def test_a_conversation_is_read_as_the_model_was_taught(folder: Path, template: bool) -> None:
    from liquid_train.data.tasks.chat import conversation_ids, end_of_turn
    from liquid_train.generate.session import open_model, open_vq
    from liquid_train.generate.text_sampler import GREEDY, answer, complete_ids
    from liquid_train.image_tokenizer.settings import VQSettings
    from liquid_train.serve.engine import Engine, Turn
    from liquid_train.serve.settings import ServeLimits
    from tests.generate.test_generation_tasks import TEMPLATE

    session = open_model(folder, "cpu")
    model, vocabulary = session.model, session.vocabulary
    vocabulary.tokenizer.chat_template = TEMPLATE if template else None
    engine = Engine(session, open_vq(session, VQSettings("auto", "auto")), ServeLimits())
    codes = engine.codes(base64.b64decode(image()))
    turns = [Turn("user", [codes, "is it red?"]), Turn("assistant", ["yes"]), Turn("user", ["a circle?"])]
    written: list[str] = []
    found = engine.reply(turns, GREEDY, 0, 12, lambda: None, written.append)
    if template:
        ids = conversation_ids([(turn.role, turn.parts) for turn in turns], vocabulary.tokenizer)
        assert (
            found
            == complete_ids(
                model, vocabulary, [ids], seeds=[0], max_new_tokens=12, end=end_of_turn(vocabulary.tokenizer)
            )[0]
        )
        assert len(written) > 1 and found.startswith("".join(written))
    else:
        assert found == answer(model, vocabulary, [(codes, "a circle?")], max_new_tokens=12)[0]


@pytest.fixture
def image_batches(folder: Path) -> Iterator[Any]:
    """Up to four images a batch, in this process."""
    from liquid_train.generate.session import open_model, open_vq
    from liquid_train.image_tokenizer.settings import VQSettings
    from liquid_train.serve.engine import Engine
    from liquid_train.serve.image_batches import ImageBatches
    from liquid_train.serve.settings import ServeLimits
    from liquid_train.serve.worker import Worker

    session = open_model(folder, "cpu")
    worker = Worker(waiting=20)
    yield ImageBatches(Engine(session, open_vq(session, VQSettings("auto", "auto")), ServeLimits()), worker)
    worker.close()


def test_drawing_stops_at_the_next_row(image_batches: Any) -> None:
    from liquid_train.serve.requests import GenerateRequest
    from liquid_train.serve.worker import RequestStopped

    stop, rows = threading.Event(), []

    def row_done(done: int, total: int) -> None:
        rows.append((done, total))
        if done == 3:
            stop.set()

    with pytest.raises(RequestStopped):
        image_batches.submit(GenerateRequest(prompt="a red circle", guidance=1.0, count=3), stop, row_done).result(60)
    assert rows == [(1, 8), (2, 8), (3, 8)] and not image_batches.line


def test_drawings_that_wait_together_are_one_batch_and_the_same_images(
    image_batches: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taken along: what fits into four images and has the same settings. A stopped one leaves the others' images
    alone."""
    from liquid_train.generate.image_sampler import sample_images
    from liquid_train.serve import engine
    from liquid_train.serve.requests import GenerateRequest
    from liquid_train.serve.worker import RequestStopped

    asked = [
        GenerateRequest(prompt="a red circle", guidance=1.0, seed=1, count=2),
        GenerateRequest(prompt="a blue rectangle", guidance=1.0, seed=2),
        GenerateRequest(prompt="a red circle", guidance=1.0, seed=3, temperature=0.5),
        GenerateRequest(prompt="a red circle", guidance=1.0, seed=4, count=3),
        GenerateRequest(prompt="a red circle", guidance=1.0, seed=5),  # stopped while it waits
        GenerateRequest(prompt="a red circle", guidance=1.0, seed=6),
        GenerateRequest(prompt="a red circle", guidance=1.0, seed=7),
    ]
    alone = [image_batches.submit(one, threading.Event()).result(60) for one in asked]
    batches, draw = [], sample_images

    def watched(*arguments: Any, **options: Any) -> Any:
        batches.append(options["seeds"])
        return draw(*arguments, **options)

    monkeypatch.setattr(engine, "sample_images", watched)
    go, stops, rows = threading.Event(), [threading.Event() for _ in asked], []
    image_batches.worker.submit(lambda check: go.wait(60), threading.Event())

    def first_row(done: int, _: int) -> None:
        rows.append(done)
        stops[0].set()  # the one that took the others along is not wanted any more: they are generated all the same

    futures = [image_batches.submit(one, stop, first_row) for one, stop in zip(asked, stops, strict=True)]
    stops[4].set()
    go.set()
    for n, future in enumerate(futures):
        if n in (0, 4):
            with pytest.raises(RequestStopped):
                future.result(60)
        else:
            np.testing.assert_array_equal(future.result(60), alone[n])
    assert batches == [[1, 2, 2, 6], [3], [4, 5, 6, 7]] and not image_batches.line


def test_an_answer_stops_at_the_next_token(image_batches: Any) -> None:
    from liquid_train.generate.text_sampler import GREEDY
    from liquid_train.serve.engine import Turn
    from liquid_train.serve.requests import AnswerRequest
    from liquid_train.serve.worker import RequestStopped

    engine, looks = image_batches.engine, []

    def check() -> None:
        looks.append(1)
        if len(looks) == 3:
            raise RequestStopped("stopped")

    content = base64.b64decode(image())
    for question in ("is it red?", None):
        looks.clear()
        with pytest.raises(RequestStopped):
            engine.answer(AnswerRequest(image="x", question=question, max_new_tokens=30), content, check)
    looks.clear()
    with pytest.raises(RequestStopped):
        engine.reply([Turn("user", [engine.codes(content), "is it red?"])], GREEDY, 0, 30, check, lambda text: None)


@pytest.mark.parametrize(
    ("overrides", "word"),
    [
        (["port=99999"], "port=99999"),
        (["host="], "host"),
        (["limits.waiting=-1"], "limits.waiting=-1"),
        (["limits.pixels=0"], "limits.pixels=0"),
        (["precision=fp8"], "precision=fp8"),
        (["checkpoint=nowhere"], "nowhere"),
        (["limits.wating=3"], "did you mean limits.waiting"),
    ],
)
def test_mistakes_are_told_in_one_line(
    folder: Path, overrides: list[str], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", f"checkpoint={folder}", "ui=false", *overrides]) == 2
    said = capsys.readouterr().err
    assert word in said and said.count("\n") == 1


def test_a_port_that_is_taken_is_told_before_the_model_is_loaded(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "liquid_train.generate.session.open_model", lambda *_, **__: pytest.fail("the model was loaded")
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", f"checkpoint={folder}", "ui=false", f"port={taken.getsockname()[1]}"]) == 2
    assert "give another port" in capsys.readouterr().err


def test_a_missing_package_names_its_pip_command(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)  # import gradio: ImportError
    assert main(["serve", f"checkpoint={folder}"]) == 2
    said = capsys.readouterr().err
    assert "pip install -e '.[ui]'" in said and "ui=false" in said


def test_only_this_machine_is_listened_on_unless_told_otherwise() -> None:
    from liquid_train.config.compose import load
    from liquid_train.serve.job import is_local, listen

    config = load("serve", ["checkpoint=x"])
    with listen(config.host, 0) as listening:
        assert listening.getsockname()[0] == "127.0.0.1"
    assert is_local("localhost") and is_local("::1") and not is_local("0.0.0.0") and not is_local("example.org")
