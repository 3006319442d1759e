"""`liquid serve`: one process with the HTTP API and, unless ui=false, the page, over one model."""

from __future__ import annotations

import ipaddress
import logging
import socket
from importlib import import_module
from pathlib import Path
from types import FrameType

from liquid_train.checkpoint.folder import model_folder
from liquid_train.errors import UserError
from liquid_train.packages import missing_package
from liquid_train.serve.settings import ServeJob

log = logging.getLogger(__name__)
PAGE = "/ui"
LAST_SECONDS = 5  # that open requests get when the server is told to end


def run(config: ServeJob) -> None:
    """Serve until SIGINT or SIGTERM. Raises UserError for a user's mistake, before the model is loaded where that can
    be told."""
    for package in ("fastapi", "uvicorn", *(("gradio",) if config.ui else ())):
        need(package)
    folder = model_folder(config.checkpoint)
    listening = listen(config.host, config.port)
    try:
        serve(config, folder, listening)
    finally:
        listening.close()


def serve(config: ServeJob, folder: Path, listening: socket.socket) -> None:
    """Load the model and answer on a socket that listens already."""
    import uvicorn

    from liquid_train.generate.session import open_model, open_vq
    from liquid_train.serve.api import build_api
    from liquid_train.serve.engine import Engine
    from liquid_train.serve.image_batches import ImageBatches
    from liquid_train.serve.worker import Worker

    session = open_model(folder, config.device, config.precision, vq=config.vq, force=config.force)
    engine = Engine(session, open_vq(session, config.vq), config.limits)
    worker = Worker(config.limits.waiting)
    image_batches = ImageBatches(engine, worker)
    app = build_api(image_batches, str(folder))
    if config.ui:
        from liquid_train.serve.page import mount

        app = mount(app, image_batches, PAGE)
    address = url(config.host, listening.getsockname()[1])
    print(
        f"{address}{PAGE if config.ui else '/docs'}   API: POST {address}/generate, POST {address}/answer, GET "
        f"{address}/health",
        flush=True,
    )
    if not is_local(config.host):
        log.warning("host=%s: whoever reaches this machine can use the model; there is no password", config.host)

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            worker.closing.set()  # what runs or waits is answered with 503 at once, instead of being cut off
            super().handle_exit(sig, frame)

    try:
        Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=LAST_SECONDS)).run(
            sockets=[listening]
        )
    finally:
        worker.close()


def need(package: str) -> None:
    """UserError with the remedy when a package of the extra is missing."""
    try:
        import_module(package)
    except ImportError as error:
        without = ", or give ui=false for the API alone" if package == "gradio" else ""
        raise UserError(missing_package("liquid serve", package, "ui") + without) from error


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens already, so that a port that is taken is told before the model is loaded. port 0: any free
    one."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError, UnicodeError) as error:  # taken, no such address; beyond 65535; no name of a host
        why = getattr(error, "strerror", None) or error
        raise UserError(
            f"host={host} port={port}: cannot listen there ({why}); give another port=, or port=0 for a free one"
        ) from error


def is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
