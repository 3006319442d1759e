"""Messages go through the standard `logging` module; `set_up` gives them their one form on stderr.

    12:30:01 runs/mine starts: 3,921,408 parameters, 2 rank(s) on cuda, ...
    12:30:09 WARNING: data/captions/shard-00002.tar, sample 000301: left out: codes do not parse
    12:30:09 rank 3 WARNING: ...                            where a job has several ranks

What a user asked for (tables, generated text, paths) is no message: it is printed, on stdout.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
from typing import TYPE_CHECKING

from liquid_train.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

LEVEL = "LIQUID_LOG_LEVEL"  # environment variable, which holds where no config says otherwise
LEVELS = ("debug", "info", "warning", "error")
PACKAGES = ("liquid_train", "evals", "data_prep")  # whose messages are shown from the level on; of others: warnings


@functools.cache
def console() -> Console:
    """The one console on stderr: a progress bar and messages on the same one do not tear each other."""
    from rich.console import Console

    return Console(stderr=True)


class _Formatter(logging.Formatter):
    """Time, rank, level and message. Rank 0 is named from its warnings on; what it reports else concerns all ranks."""

    def __init__(self) -> None:
        super().__init__(datefmt="%H:%M:%S")
        self._rank = int(os.environ.get("RANK", 0))
        self._several = int(os.environ.get("WORLD_SIZE", 1)) > 1

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        severe = record.levelno >= logging.WARNING
        rank = f"rank {self._rank}" if self._several and (self._rank or severe) else ""
        marks = " ".join(mark for mark in (rank, record.levelname if severe else "") if mark)
        return f"{self.formatTime(record, self.datefmt)} {marks}{': ' if marks else ''}{record.message}"


class _Terminal(logging.Handler):
    """Writes to stderr as it is at that moment, and above a progress bar where one is shown."""

    def __init__(self) -> None:
        super().__init__()
        self._process = os.getpid()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
            # a data loader's forked process has a copy of the bar, which it must not draw
            if console.cache_info().currsize and os.getpid() == self._process:
                console().print(text, markup=False, highlight=False, soft_wrap=True)
            else:
                sys.stderr.write(f"{text}\n")
                sys.stderr.flush()
        except Exception:
            self.handleError(record)


def set_up(level: str | None = None) -> None:
    """Show messages of `level` and above on stderr; None: as LIQUID_LOG_LEVEL says, else info. Called again, it
    changes the level. Raises UserError for an unknown level."""
    wish = level or os.environ.get(LEVEL) or "info"
    if wish.lower() not in LEVELS:
        raise UserError(f"{'log.level' if level else LEVEL}={wish}: one of {', '.join(LEVELS)}")
    root = logging.getLogger()
    for handler in [h for h in root.handlers if isinstance(h, _Terminal)]:
        root.removeHandler(handler)
    terminal = _Terminal()
    terminal.setFormatter(_Formatter())
    root.addHandler(terminal)
    for package in PACKAGES:
        logging.getLogger(package).setLevel(wish.upper())
