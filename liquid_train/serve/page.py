"""The page: images in a gallery, and a conversation about images. It asks the same engine as the API, through the
same line.

A handler is a generator that shows how far the worker is; `stop` sets the event that the work looks at after every row
of codes or token. Each browser session has one such event for each tab. Errors come up as a message that stays until it
is closed.
"""

from __future__ import annotations

import html
import logging
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr
from fastapi import FastAPI
from fastapi.responses import RedirectResponse
from pydantic import ValidationError

from liquid_train.errors import UserError
from liquid_train.generate.image_sampler import Sampling
from liquid_train.generate.settings import GenerateJob
from liquid_train.serve.engine import DEFAULT_SAMPLING, Check, Engine, Turn
from liquid_train.serve.image_batches import ImageBatches
from liquid_train.serve.requests import MAX_SEED, GenerateRequest, field_message
from liquid_train.serve.worker import Busy, RequestStopped, Worker

log = logging.getLogger(__name__)
T = TypeVar("T")
LOOK_EVERY = 0.1  # seconds between two looks at how far the work is
# The gallery is as high as its images; gradio's Share works on its own hosting alone.
CSS = '.grid-wrap {max-height: none !important} button[title="Share"] {display: none}'


def mount(app: FastAPI, image_batches: ImageBatches, path: str) -> FastAPI:
    """Put the page at `path` of the application, and lead / there."""

    @app.get("/", include_in_schema=False)
    async def root() -> RedirectResponse:
        return RedirectResponse(path)

    limits = image_batches.engine.limits
    blocks = build(image_batches).queue(max_size=None, default_concurrency_limit=limits.waiting + 1, api_open=False)
    mounted: FastAPI = gr.mount_gradio_app(
        app,
        blocks,
        path=path,
        max_file_size=int(limits.body_mib * 2**20),
        show_error=True,
        footer_links=[],
        ssr_mode=False,
        css=CSS,
    )
    return mounted


def build(image_batches: ImageBatches) -> gr.Blocks:
    """The page's two tabs."""
    stops = Stops()
    with gr.Blocks(title="liquid", analytics_enabled=False, delete_cache=(3600, 3600)) as blocks:
        gr.Markdown("# liquid\nOne model that generates images and reads them.")
        with gr.Tab("Draw"):
            image_tab(image_batches, stops)
        with gr.Tab("Chat"):
            chat_tab(image_batches.engine, image_batches.worker, stops)
        blocks.unload(stops.leave)
    return blocks


class Stops:
    """The stop events of everything that runs for the page, by browser session and tab."""

    def __init__(self) -> None:
        self.events: dict[tuple[str, str], threading.Event] = {}

    def start(self, session: str | None, tab: str) -> threading.Event:
        """A new event, for the work that begins; what this tab still has running is stopped."""
        self.stop(session, tab)
        event = self.events[session or "", tab] = threading.Event()
        return event

    def stop(self, session: str | None, tab: str) -> None:
        event = self.events.pop((session or "", tab), None)
        if event is not None:
            event.set()

    def leave(self, request: gr.Request) -> None:
        """The browser's page was closed."""
        for tab in ("draw", "chat"):
            self.stop(request.session_hash, tab)


def image_tab(image_batches: ImageBatches, stops: Stops) -> None:
    engine, limits, sizes = image_batches.engine, image_batches.engine.limits, image_batches.engine.sizes
    with gr.Row():
        with gr.Column(scale=1):
            prompt = gr.Textbox(label="Prompt", lines=2, max_length=limits.characters)
            size = gr.Dropdown(sizes, value=sizes[0], label="Size", interactive=len(sizes) > 1)
            guidance = gr.Slider(
                0,
                20,
                value=GenerateJob.guidance,
                step=0.5,
                label="Guidance",
                info="1 is none; higher keeps closer to the prompt",
            )
            count = gr.Slider(1, limits.pictures, value=min(4, limits.pictures), step=1, label="Images")
            seed = gr.Number(
                value=0,
                precision=0,
                minimum=0,
                maximum=MAX_SEED,
                label="Seed",
                info="image i is generated with seed + i",
            )
            with gr.Row():
                start = gr.Button("Draw", variant="primary", min_width=100)
                stop = gr.Button("Stop", variant="stop", min_width=100)
        with gr.Column(scale=2):
            status = gr.Markdown("")
            gallery = gr.Gallery(label="Images", columns=2, height="auto", format="png", object_fit="contain")

    def draw(
        prompt: str, size: str, guidance: float, count: int, seed: int | None, request: gr.Request
    ) -> Iterator[tuple[str, Any]]:
        with shown():
            asked = GenerateRequest(
                prompt=prompt, size=size, guidance=float(guidance), count=int(count), seed=int(seed or 0)
            )
            engine.check_generate(asked)
            progress: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
            event = stops.start(request.session_hash, "draw")
            future = image_batches.submit(asked, event, lambda *row: progress.put(row))
            yield "waiting for its turn", []
            for done, rows in follow(future, event, progress):
                yield bar(done, rows), gr.skip()
            if event.is_set():
                yield "stopped", gr.skip()
                return
            images = [(image, f"seed {asked.seed + i}") for i, image in enumerate(future.result())]
            yield f"{len(images)} drawn", images
            return
        yield "not drawn", gr.skip()

    def end(request: gr.Request) -> None:
        stops.stop(request.session_hash, "draw")

    inputs = [prompt, size, guidance, count, seed]
    gr.on([start.click, prompt.submit], draw, inputs, [status, gallery], show_progress="hidden", api_name="draw")
    stop.click(end, queue=False, show_progress="hidden", api_name="stop_drawing")


class Conversation:
    """What the chat's buttons do."""

    def __init__(self, engine: Engine, worker: Worker, stops: Stops) -> None:
        self.engine, self.worker, self.stops = engine, worker, stops

    def send(
        self,
        message: dict[str, Any],
        said: list[Any],
        before: list[Turn],
        tokens: int,
        warmth: float,
        request: gr.Request,
    ) -> Iterator[Any]:
        """Show the message, then the answer as it grows: (what is shown, the turns so far, the box)."""
        with shown():
            text, files, contents = self._read(message, tokens)
            said = [*said, *({"role": "user", "content": {"path": str(file)}} for file in files)]
            said += [{"role": "user", "content": text}] if text else []
            sampling = Sampling(float(warmth), DEFAULT_SAMPLING.top_k, DEFAULT_SAMPLING.top_p)
            words: queue.SimpleQueue[str] = queue.SimpleQueue()
            event = self.stops.start(request.session_hash, "chat")

            def work(check: Check) -> tuple[list[Turn], str]:
                asked = [*before, Turn("user", [*(self.engine.codes(content) for content in contents), text])]
                return asked, self.engine.reply(asked, sampling, 0, int(tokens), check, words.put)

            future = self.worker.submit(work, event)
            shown_text = ""
            yield said, before, gr.MultimodalTextbox(value=None)
            for word in follow(future, event, words):
                shown_text += word
                yield [*said, {"role": "assistant", "content": shown_text}], before, gr.skip()
            if event.is_set():
                yield [*said, {"role": "assistant", "content": shown_text + " (stopped)"}], before, gr.skip()
                return
            asked, reply = future.result()
            yield (
                [*said, {"role": "assistant", "content": reply or "(nothing)"}],
                [*asked, Turn("assistant", [reply.strip()])],
                gr.skip(),
            )
            return
        yield gr.skip(), gr.skip(), gr.skip()

    def _read(self, message: dict[str, Any], tokens: int) -> tuple[str, list[Path], list[bytes]]:
        """(text, files, their content) of a message. Raises UserError for what cannot be answered."""
        text, files = (message.get("text") or "").strip(), [Path(file) for file in message.get("files") or []]
        if not text and not files:
            raise UserError("nothing to answer; write something or add an image")
        self.engine.limited.text("message", text)
        self.engine.limited.new_tokens(int(tokens))
        self.engine.limited.count(len(files))
        contents = [file.read_bytes() for file in files]
        for file, content in zip(files, contents, strict=True):
            self.engine.limited.image(file.name, content)
        return text, files, contents

    def end(self, request: gr.Request) -> None:
        self.stops.stop(request.session_hash, "chat")

    def forget(self, request: gr.Request) -> tuple[list[Any], list[Any]]:
        self.stops.stop(request.session_hash, "chat")
        return [], []


def chat_tab(engine: Engine, worker: Worker, stops: Stops) -> None:
    how = (
        "the whole conversation"
        if engine.chats
        else "the newest image and your last message (its tokenizer has no chat template)"
    )
    gr.Markdown(f"The model reads {how}. An image without words gets a caption.")
    talk = gr.Chatbot(height=480, label="Conversation", render_markdown=False, buttons=["copy"])
    turns = gr.State([])  # on the server, so that a page cannot name files that it did not send
    box = gr.MultimodalTextbox(
        file_types=["image"],
        file_count="multiple",
        show_label=False,
        placeholder="A message, with images if you like",
    )
    with gr.Row():
        most = engine.limits.new_tokens
        tokens = gr.Slider(1, most, value=engine.limited.usual_tokens, step=1, label="Tokens", info="at most")
        warmth = gr.Slider(0, 2, value=GenerateJob.temperature, step=0.1, label="Temperature", info="0 is greedy")
        stop = gr.Button("Stop", variant="stop")
        clear = gr.Button("New conversation")

    conversation = Conversation(engine, worker, stops)
    sent = box.submit(
        conversation.send,
        [box, talk, turns, tokens, warmth],
        [talk, turns, box],
        show_progress="hidden",
        api_name="chat",
    )
    stop.click(conversation.end, queue=False, show_progress="hidden", api_name="stop_chat")
    # cancels: what is under way must not write its conversation back
    gr.on(
        [clear.click, talk.clear],
        conversation.forget,
        None,
        [talk, turns],
        queue=False,
        show_progress="hidden",
        api_name="forget",
        cancels=[sent],
    )


def follow(future: Future[Any], event: threading.Event, news: queue.SimpleQueue[T]) -> Iterator[T]:
    """What the work reports, as it comes, until it is done or stopped. Stopped work ends at its next look; waiting work
    leaves the line."""
    try:
        while not future.done() or not news.empty():
            if event.is_set():
                future.cancel()
                return
            with suppress(queue.Empty):
                yield news.get(timeout=LOOK_EVERY)
    except GeneratorExit:  # nobody looks any more
        event.set()
        raise


@contextmanager
def shown() -> Iterator[None]:
    """Errors come up in the page, where they stay until they are closed; what nobody foresaw is logged as well.

    As a warning, because gradio covers every output of a handler that raises gr.Error, the conversation for one.
    """
    try:
        yield
    except ValidationError as error:
        text = "; ".join(field_message(e) for e in error.errors())
    except (UserError, Busy, RequestStopped) as error:
        text = str(error)
    except Exception as error:
        log.exception("the page's request failed")
        text = f"{type(error).__name__}: {error}"
    else:
        return
    gr.Warning(html.escape(text), duration=None)


def bar(done: int, rows: int) -> str:
    return f"row {done} of {rows} <progress value='{done}' max='{rows}'></progress>"
