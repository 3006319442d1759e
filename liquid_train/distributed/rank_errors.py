"""What ends a rank is said once, by the rank that has it: torchrun's store tells every rank what the others said.

Ranks that die before there is a process group are heard too: the store is that of torchrun's agent, which is there from
the beginning. Without it (another launcher) every rank speaks for itself.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
import traceback
from datetime import timedelta

import torch.distributed as dist

from liquid_train.distributed.heartbeat import HOST

PATIENCE = 5.0  # seconds that a rank waits for what rank 0, or a rank that failed, has to say


def report_mistake(message: str, own: bool = False) -> None:
    """Print a user's mistake that this rank has found.

    Rank 0 prints it as it is; any other with its number, and only where neither rank 0 nor an earlier one found the
    same. own: it concerns this rank alone (its data loader), so that its number is given at any rate.
    """
    rank = _rank()
    if rank and _told_already(message):
        return
    _note(message)
    print(f"liquid train: {f'rank {rank}: ' if rank or own else ''}{message}", file=sys.stderr, flush=True)


def report_bug(error: BaseException) -> None:
    """Print the traceback of one of several ranks in one piece, under the rank's name."""
    _note("an error")
    head = f"liquid train: rank {_rank()} on {HOST}: {type(error).__name__}, its traceback:\n"
    os.write(2, (head + "".join(traceback.format_exception(error))).encode())


def report_lost_peer(message: str) -> None:
    """Say that another rank is gone, unless that one says why itself; then wait until it has ended.

    So the launcher finds the rank that failed, and not the one that noticed.
    """
    store = _store()
    told = False
    if store is not None:
        try:
            if not _rank():
                store.set("0", message)
            store.wait(["told"], timedelta(seconds=PATIENCE))
            told = True
        except (RuntimeError, ValueError):
            pass  # nobody has, or the store is gone with its machine
    if not told:
        print(f"liquid train: rank {_rank()}: {message}", file=sys.stderr, flush=True)
    elif _world_size() > 1:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # how torchrun ends what is left
        time.sleep(PATIENCE)


def _rank() -> int:
    return int(os.environ.get("RANK", 0))


def _world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def _store() -> dist.Store | None:
    """A connection to the store of torchrun's agent; None where there is none."""
    if _world_size() < 2 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    try:
        store = dist.TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            timeout=timedelta(seconds=PATIENCE),
        )
    except (RuntimeError, ValueError):
        return None
    return dist.PrefixStore(f"liquid/errors/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def _note(message: str) -> None:
    """Let the other ranks know that this one has told why it ends."""
    store = _store()
    if store is None:
        return
    try:
        if not _rank():
            store.set("0", message)
        store.set("told", str(_rank()))
    except (RuntimeError, ValueError):
        return  # the agent is gone: nobody is left to be told


def _told_already(message: str) -> bool:
    """Whether rank 0 ends with the same message, or another rank was first with it."""
    store = _store()
    if store is None:
        return False
    try:
        store.set("told", str(_rank()))  # before the wait: a rank that lost this one need not speak
        try:
            store.wait(["0"], timedelta(seconds=PATIENCE))
            if store.get("0").decode() == message:
                return True
        except (RuntimeError, ValueError):
            pass  # rank 0 is fine, or waits for this one
        key = hashlib.sha256(message.encode()).hexdigest()
        return store.compare_set(key, "", str(_rank())).decode() != str(_rank())
    except (RuntimeError, ValueError):
        return False
