"""Documents that a source drops are reported, and end the run where they are too many: a mixture that loses one of its
sources goes on looking well."""

from __future__ import annotations

import logging
import math

from liquid_train.errors import UserError

log = logging.getLogger(__name__)

TENFOLD = 10  # a reason is reported at its first document, and whenever its number has grown by this factor
DEVIATIONS = 3  # by how many standard deviations a share must be exceeded, so that few documents prove nothing


class DropGuard:
    """Watches what all ranks together have dropped since they started."""

    def __init__(self, max_dropped: float) -> None:
        self.max_dropped = max_dropped
        self._reported: dict[str, int] = {}  # by "source: reason"

    def report(self, dropped: dict[str, int]) -> list[str]:
        """Lines for what is new, or has become tenfold. dropped: documents by "source: reason"."""
        due = {reason: n for reason, n in dropped.items() if n >= TENFOLD * self._reported.get(reason, 0) and n}
        self._reported |= due
        return [f"data.sources.{reason}: {n:,} documents so far" for reason, n in due.items()]

    def too_many(self, asked: dict[str, int], lost: dict[str, int]) -> str | None:
        """The source that lost a larger share than allowed of the documents it was asked for; None where none did."""
        return next((name for name, n in lost.items() if exceeds(n, asked[name], self.max_dropped)), None)

    def refuse(self, name: str, asked: int, lost: int, reasons: dict[str, int]) -> None:
        """Raise UserError for a source that too_many has named. reasons: documents by "source: reason"."""
        own = {r.partition(": ")[2]: n for r, n in reasons.items() if r.partition(": ")[0] == name}
        named = ", ".join(f"{reason}: {n:,}" for reason, n in sorted(own.items(), key=lambda item: -item[1]))
        raise UserError(
            f"data.max_dropped={self.max_dropped}: {lost:,} of {asked:,} documents of data.sources.{name} were dropped "
            f"({named}); fix its shards or raise data.seq_len, as the reason asks for, or allow a larger share"
        )


def exceeds(lost: int, asked: int, share: float) -> bool:
    """Whether `lost` of `asked` is more than the share, and more than chance explains."""
    return lost > share * asked + DEVIATIONS * math.sqrt(share * (1 - share) * asked)
