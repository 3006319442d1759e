"""Bodies of requests that are refused before the model sees them."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

GENERATE = {"prompt": "a red circle", "guidance": 1.0}
HALF_A_PAIR = '{"prompt": "\\ud800 x", "guidance": 1.0}'


def generate(client: Any, body: str) -> int:
    return int(client.post("/generate", content=body, headers={"Content-Type": "application/json"}).status_code)


def test_a_prompt_that_is_no_text_is_the_clients_fault(api: tuple[Any, Any]) -> None:
    assert 400 <= generate(api[0], HALF_A_PAIR) < 500


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
