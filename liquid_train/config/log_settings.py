"""How much a job reports (liquid_train/logs.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from liquid_train.config.fields import Section, setting


@dataclass
class LogConfig(Section):
    """Messages on stderr."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"] | None,
        setting("the least that is shown", null="that of the environment variable LIQUID_LOG_LEVEL, else info"),
    ] = None
