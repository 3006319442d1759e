"""Requests for images that wait at the same time are served as one batch where they agree in everything but prompt and
seed.

A request whose turn comes takes along those after it that fit, up to limits.pictures in all. Theirs are then ready
when their own turn comes, so nobody is overtaken. No image changes: it depends on its prompt and seed alone (see
generate/image_sampler.py).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np

from liquid_train.serve.engine import Check, Engine
from liquid_train.serve.requests import GenerateRequest
from liquid_train.serve.worker import RequestStopped, Worker


@dataclass(eq=False)
class Waiting:
    """One request for images. pixels: its images, once they were generated next to another's."""

    asked: GenerateRequest
    check: Check
    row_done: Callable[[int, int], object]
    pixels: np.ndarray | None = None

    @property
    def wanted(self) -> bool:
        try:
            self.check()
        except RequestStopped:
            return False
        return True


class ImageBatches:
    """What is to be generated, for the API and the page alike, in front of the one worker."""

    def __init__(self, engine: Engine, worker: Worker) -> None:
        self.engine, self.worker = engine, worker
        self.line: list[Waiting] = []
        self.lock = threading.Lock()

    def submit(
        self,
        asked: GenerateRequest,
        stop: threading.Event,
        row_done: Callable[[int, int], object] = lambda done, rows: None,
    ) -> Future[np.ndarray]:
        """Images uint8 [count, height, width, 3] of a request that was checked. row_done: called with (rows of codes
        generated, rows in all).

        Raises what Worker.submit does. A batch is given up once nobody wants any image of it.
        """
        waiting = Waiting(asked, self.worker.checker(stop), row_done)
        with self.lock:
            self.line.append(waiting)
        try:
            future = self.worker.submit(lambda check: self._turn(waiting), stop)
        except Exception:
            self._leave(waiting)
            raise
        future.add_done_callback(lambda _: self._leave(waiting))
        return future

    def _turn(self, first: Waiting) -> np.ndarray:
        if first.pixels is None:
            self._draw(self._batch(first))
        first.check()
        assert first.pixels is not None
        return first.pixels

    def _batch(self, first: Waiting) -> list[Waiting]:
        """Those that are generated now, in the order in which they came."""
        with self.lock:
            others = [w for w in self.line if w is not first and w.pixels is None]
        batch, room = [first], self.engine.limits.pictures - first.asked.count
        kind = self.engine.kind(first.asked)
        for other in others:
            if other.asked.count <= room and other.wanted and self.engine.kind(other.asked) == kind:
                batch.append(other)
                room -= other.asked.count
        return batch

    def _draw(self, batch: list[Waiting]) -> None:
        def row_done(done: int, rows: int) -> None:
            wanted = [w for w in batch if w.wanted]
            if not wanted:
                batch[0].check()  # raises RequestStopped, with the reason
            for w in wanted:
                w.row_done(done, rows)

        for w, pixels in zip(batch, self.engine.generate([w.asked for w in batch], row_done), strict=True):
            w.pixels = pixels

    def _leave(self, waiting: Waiting) -> None:
        with self.lock:
            self.line.remove(waiting)
