"""Waiting for what cannot be read now: a server that answers 503, a network that is away, a folder not mounted.

Nothing is wrong with the data then, so nothing may be left out: the same read is tried again, after growing pauses.
What stays away ends the job in one line, and the same command goes on from its newest checkpoint.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

log = logging.getLogger(__name__)

RETRY_SECONDS = 600.0
# While a set is opened: an outage looks like a mistyped address, and nothing is lost by ending.
OPENING_SECONDS = 30.0
FIRST_PAUSE = 0.5  # seconds, doubled before every further attempt
LONGEST_PAUSE = 15.0
QUIET_ATTEMPTS = 3  # errors of a moment are not worth a warning
T = TypeVar("T")


def retried(what: str, action: Callable[[], T], seconds: float, passes: Callable[[Exception], bool]) -> T:
    """The action's result. An error that passes by itself is tried again for `seconds`; then it is raised as it is, as
    is any other at once. `what` is read, in a message."""
    begun, pause, attempts = time.monotonic(), FIRST_PAUSE, 0
    while True:
        try:
            result = action()
        except Exception as error:  # every package has its own exceptions: `passes` knows them
            attempts += 1
            left = begun + seconds - time.monotonic()
            if left <= 0 or not passes(error):
                raise
            if attempts == QUIET_ATTEMPTS:
                log.warning("%s: cannot be read now (%s): waiting for it, up to %.0f s more", what, error, left)
            # spread, so that all processes of a job do not come back at once
            time.sleep(min(pause * random.uniform(0.5, 1.5), left))
            pause = min(2 * pause, LONGEST_PAUSE)
            continue
        if attempts >= QUIET_ATTEMPTS:
            log.warning("%s: is read again, after %.0f s", what, time.monotonic() - begun)
        return result


def local_outage(error: Exception) -> bool:
    """Whether an error of a mounted file system may pass: a network file system shows an outage as an empty folder, a
    stale handle or an input/output error."""
    return isinstance(error, OSError) and not isinstance(error, PermissionError | IsADirectoryError)


def cannot_be_read(what: str, error: OSError, seconds: float) -> str:
    """One line for the end of a job that could not wait any longer."""
    return (
        f"{what}: cannot be read now: {error.strerror or error}; nothing of it was left out, and the same command goes "
        f"on once it can be (data.retry_seconds={seconds:g}: for how long what may pass is tried again)"
    )
