"""Every rank publishes which phase it is in, so that a rank that waits can report which one it waits for."""

from __future__ import annotations

import json
import socket
import threading
import time
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from liquid_train.distributed.step_timer import StepTimer

HOST = socket.gethostname()


@dataclass(frozen=True)
class Sign:
    """A rank's last sign of life. entered: number of phases it has entered; seconds: its age, by two hosts' clocks."""

    rank: int
    host: str
    phase: str
    entered: int
    seconds: float

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host}: {self.phase}, last sign of life {self.seconds:.0f} s ago"


class Heartbeat:
    """A thread that writes this rank's phase to the process group's store every `period` seconds."""

    def __init__(self, timer: StepTimer, period: float) -> None:
        self.timer, self.period = timer, period
        self._over = threading.Event()
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def _beat(self) -> None:
        store = None
        while not self._over.wait(self.period):
            if not dist.is_initialized():
                continue
            try:
                store = store or _own_connection()
                sign = {"host": HOST, "phase": str(self.timer), "entered": self.timer.entered, "time": time.time()}
                store.set(f"liquid/{dist.get_rank()}", json.dumps(sign))
            except (RuntimeError, ValueError):
                return  # the store is gone, with the rank that hosted it: nobody is left to read

    def stop(self) -> None:
        self._over.set()

    def others(self) -> list[Sign]:
        """The other ranks' last signs, those furthest behind first; [] where the store does not answer. May block."""
        try:
            store, size = _own_connection(), dist.get_world_size()
            keys = [f"liquid/{rank}" for rank in range(size) if rank != dist.get_rank()]
            known = [key for key in keys if store.check([key])]
            found = [json.loads(value) for value in store.multi_get(known)] if known else []
        except (RuntimeError, ValueError):
            return []
        now = time.time()
        signs = [
            Sign(int(key.split("/")[1]), s["host"], s["phase"], s["entered"], max(0.0, now - s["time"]))
            for key, s in zip(known, found, strict=True)
        ]
        return sorted(signs, key=lambda s: (s.entered, -s.seconds))


def _own_connection() -> Any:
    """A connection to the group's store: the main thread may hold the group's for as long as it waits for a rank."""
    store: Any = dist.distributed_c10d._get_default_store()
    return store.clone()
