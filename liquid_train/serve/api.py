"""The HTTP API: POST /generate, POST /answer, GET /health; every error is {"error": what to do about it}.

4xx  the request is wrong: 400 not possible with this model or beyond a limit, 404 no such path, 405 another method,
     413 a body that is too large, 422 a field that is missing, unknown, of another type or out of its range
503  as many requests wait as may; Retry-After says when to come back
"""

from __future__ import annotations

import asyncio
import base64
import io
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from PIL import Image
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from liquid_train.errors import UserError
from liquid_train.serve.engine import Check
from liquid_train.serve.image_batches import ImageBatches
from liquid_train.serve.requests import AnswerRequest, GenerateRequest, field_message, image_content
from liquid_train.serve.worker import Busy, RequestStopped, Worker

log = logging.getLogger(__name__)
T = TypeVar("T")
PATHS = ("/generate", "/answer")
RETRY_AFTER = 5  # seconds
WATCH_EVERY = 0.5  # seconds: how often it is looked whether the client is still there


def build_api(image_batches: ImageBatches, checkpoint: str) -> FastAPI:
    """The application; the page is mounted on it where it is wanted."""
    engine, worker = image_batches.engine, image_batches.worker
    app = FastAPI(title="liquid serve", description="Images from words, and answers about images.")
    app.add_middleware(BodyLimit, size=int(engine.limits.body_mib * 2**20))
    add_error_answers(app)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """What runs here, and how many requests wait."""
        return {
            "status": "ok",
            "checkpoint": checkpoint,
            "device": str(engine.session.device),
            "sizes": engine.sizes,
            "open": worker.open,
            "waiting": worker.waiting,
            "limits": vars(engine.limits),
        }

    @app.post("/generate")
    async def generate(body: GenerateRequest, request: Request) -> dict[str, Any]:
        """Draw `count` images: PNGs in base64, each with its seed."""
        engine.check_generate(body)
        start, stop = time.perf_counter(), threading.Event()
        pixels = await while_wanted(image_batches.submit(body, stop), stop, request)
        files = await asyncio.to_thread(lambda: [base64.b64encode(png(one)).decode() for one in pixels])
        images = [{"seed": body.seed + i, "png": file} for i, file in enumerate(files)]
        return {
            "images": images,
            "width": pixels.shape[2],
            "height": pixels.shape[1],
            "seconds": round(time.perf_counter() - start, 3),
        }

    @app.post("/answer")
    async def answer(body: AnswerRequest, request: Request) -> dict[str, Any]:
        """Answer `question` about `image`, or caption it."""
        content = image_content(body.image)
        engine.check_answer(body, content)
        start = time.perf_counter()
        text = await in_turn(worker, request, lambda check: engine.answer(body, content, check))
        return {"answer": text, "seconds": round(time.perf_counter() - start, 3)}

    return app


async def in_turn(worker: Worker, request: Request, work: Callable[[Check], T]) -> T:
    """What `work` gives when its turn comes; it is given up when the client goes away."""
    stop = threading.Event()
    return await while_wanted(worker.submit(work, stop), stop, request)


async def while_wanted(future: Future[T], stop: threading.Event, request: Request) -> T:
    """The future's result; `stop` is set when the client goes away."""
    result = asyncio.wrap_future(future)
    while not (await asyncio.wait([result], timeout=WATCH_EVERY))[0]:
        if await request.is_disconnected():
            stop.set()
            result.cancel()  # what still waits gives up its place; what runs ends at its next check
            raise RequestStopped("the client went away")
    return result.result()


def add_error_answers(app: FastAPI) -> None:
    """Every error becomes JSON {"error": text}."""

    def answer(status: int, text: str, headers: dict[str, str] | None = None) -> JSONResponse:
        return JSONResponse({"error": text}, status, headers)

    @app.exception_handler(RequestValidationError)
    async def wrong_field(_: Request, error: RequestValidationError) -> JSONResponse:
        return answer(422, "; ".join(field_message(e) for e in error.errors()))

    @app.exception_handler(StarletteHTTPException)
    async def refused(request: Request, error: StarletteHTTPException) -> JSONResponse:
        known = {
            404: f"{request.url.path}: no such path; POST /generate, POST /answer, GET /health, or /docs",
            405: f"{request.method} {request.url.path}: another method is needed",
        }
        return answer(error.status_code, known.get(error.status_code, str(error.detail)), dict(error.headers or {}))

    @app.exception_handler(UserError)
    async def impossible(_: Request, error: UserError) -> JSONResponse:
        return answer(400, str(error))

    @app.exception_handler(Busy)
    async def busy(_: Request, error: Busy) -> JSONResponse:
        return answer(503, str(error), {"Retry-After": str(RETRY_AFTER)})

    @app.exception_handler(RequestStopped)
    async def stopped(_: Request, error: RequestStopped) -> JSONResponse:
        return answer(503, str(error))

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> JSONResponse:
        return answer(500, f"{request.url.path} failed: {type(error).__name__}; the server's log says more")


def png(pixels: Any) -> bytes:
    """uint8 [height, width, 3] -> the content of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png")
    return buffer.getvalue()


class BodyLimit:
    """Refuses a body beyond `size` bytes as soon as that can be told, whether its length is stated or not."""

    def __init__(self, app: ASGIApp, size: int) -> None:
        self.app, self.size = app, size

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in PATHS:  # the page has a limit of its own
            return await self.app(scope, receive, send)
        stated = dict(scope["headers"]).get(b"content-length", b"0")
        read = int(stated) if stated.isdigit() and int(stated) > self.size else 0

        async def limited() -> Message:
            nonlocal read
            if read > self.size:
                raise HTTPException(413, f"the body is larger than {self.size:,} bytes (limits.body_mib)")
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.size:
                raise HTTPException(413, f"the body is larger than {self.size:,} bytes (limits.body_mib)")
            return message

        await self.app(scope, limited, send)
