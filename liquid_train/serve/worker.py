"""One thread that uses the model, and a queue of bounded length in front of it.

Attention is switched in the model's config during a forward pass, so two threads must never run one model. Requests are
answered in the order in which they come.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class Busy(Exception):
    """As many requests wait as are allowed to."""


class RequestStopped(Exception):
    """The work was given up: whoever asked for it pressed stop or went away, or the server ends."""


class Worker:
    """Runs one piece of work at a time; up to `waiting` more stand in line."""

    def __init__(self, waiting: int) -> None:
        self.limit = waiting + 1
        self.open = 0  # running and waiting
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self.pool = ThreadPoolExecutor(1, "model")

    @property
    def waiting(self) -> int:
        return max(0, self.open - 1)

    def submit(self, work: Callable[[Callable[[], None]], T], stop: threading.Event) -> Future[T]:
        """Run work(check) when its turn comes; it calls check() now and then, which raises RequestStopped once `stop`
        is set.

        Raises Busy when the line is full. The future raises RequestStopped, or what the work raised.
        """
        with self.lock:
            if self.open >= self.limit:
                raise Busy(f"{self.limit - 1} requests are waiting, no more may; try again later")
            self.open += 1
        check = self.checker(stop)

        def turn() -> T:
            check()
            return work(check)

        future = self.pool.submit(turn)
        future.add_done_callback(self._leave)
        return future

    def checker(self, stop: threading.Event) -> Callable[[], None]:
        """What raises RequestStopped once `stop` is set or the server ends."""

        def check() -> None:
            if stop.is_set() or self.closing.is_set():
                raise RequestStopped("the server is ending" if self.closing.is_set() else "stopped")

        return check

    def close(self) -> None:
        """Give up what runs, drop what waits, and end the thread."""
        self.closing.set()
        self.pool.shutdown(wait=True, cancel_futures=True)

    def _leave(self, _: Future[T]) -> None:
        with self.lock:
            self.open -= 1
