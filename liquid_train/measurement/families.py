"""Which numbers of an evaluation belong together in the report: stated by the metric, stored with its numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MetricFamily:
    """One figure. title: of the figure. pattern: regular expression of the names; its group `line`, where there is
    one, tells one line from another. unit: "%" for shares. chance: what guessing gives."""

    title: str
    pattern: str
    unit: str = ""
    chance: float | None = None
