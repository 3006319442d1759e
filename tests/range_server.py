"""A local HTTP server with byte ranges, which counts what it is asked for and fails on demand."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class RangeServer:
    """Serves `root`. requests: (method, path, Range header or None) of every request. url: of the root.

    fail: path -> statuses to answer its next requests with instead; 0 cuts the connection in the middle of the content.
    change: if given, takes (path, content of the answer) and returns what is sent. ranges=False ignores the Range
    header.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.requests: list[tuple[str, str, str | None]] = []
        self.fail: dict[str, list[int]] = {}
        self.change: Callable[[str, bytes], bytes] | None = None
        self.ranges = True
        self.url = ""

    def asked(self, suffix: str = ".tar") -> list[tuple[str, str, str | None]]:
        return [r for r in self.requests if r[1].endswith(suffix)]

    @contextlib.contextmanager
    def running(self) -> Iterator[RangeServer]:
        state = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                wanted = self.headers.get("Range")
                state.requests.append((self.command, self.path, wanted))
                file = state.root / self.path.lstrip("/")
                statuses = state.fail.get(self.path, [])
                status = statuses.pop(0) if statuses else None
                if status or not file.exists():
                    self.answer(status or 404, b"")
                elif file.is_dir():
                    self.answer(
                        200, "".join(f'<a href="{p.name}">{p.name}</a>' for p in file.iterdir()).encode(), "text/html"
                    )
                else:
                    content, code = file.read_bytes(), 200
                    if wanted and state.ranges:
                        first, _, last = wanted.removeprefix("bytes=").partition("-")
                        content, code = (
                            content[int(first) : int(last) + 1 if last else None],
                            206 if int(first) < len(content) else 416,
                        )
                    self.answer(code, state.change(self.path, content) if state.change else content, cut=status == 0)

            do_HEAD = do_GET

            def do_PUT(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                state.requests.append((self.command, self.path, None))
                self.answer(501, b"")

            def answer(
                self, status: int, content: bytes, kind: str = "application/octet-stream", cut: bool = False
            ) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.send_header("Content-Type", kind)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content[: len(content) // 2] if cut else content)
                self.close_connection = cut

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        self.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
