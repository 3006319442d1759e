"""When a source drops too many documents, and how often that is said."""

from __future__ import annotations

import pytest

from liquid_train.training.drop_guard import DropGuard, exceeds


@pytest.mark.parametrize(
    ("lost", "asked", "share", "ends"),
    [
        (0, 0, 0.1, False),
        (1, 1, 0.1, False),  # one document proves nothing
        (20, 20, 0.1, True),
        (8, 40, 0.1, False),
        (300, 1000, 0.1, True),
        (120, 1000, 0.1, False),
        (1200, 10_000, 0.1, True),
        (1, 1000, 0.0, True),  # none is allowed
        (1000, 1000, 1.0, False),
    ],
)
def test_a_share_is_exceeded_where_chance_does_not_explain_it(lost: int, asked: int, share: float, ends: bool) -> None:
    assert exceeds(lost, asked, share) == ends


def test_drops_are_said_at_the_first_and_at_every_tenfold() -> None:
    guard = DropGuard(0.1)
    said = [n for n in range(1, 2001) if guard.report({"t2i: longer than seq_len": n, "t2i: other": 0})]
    assert said == [1, 10, 100, 1000]
    assert guard.report({"text: bad": 5}) == ["data.sources.text: bad: 5 documents so far"]


def test_the_source_and_its_reasons_are_named() -> None:
    guard = DropGuard(0.2)
    assert guard.too_many({"a": 1000, "b": 100}, {"a": 100, "b": 90}) == "b"
    with pytest.raises(
        ValueError, match=r"^data.max_dropped=0.2: 90 of 100 documents of data.sources.b .*\(y: 80, x: 10\)"
    ):
        guard.refuse("b", 100, 90, {"a: x": 100, "b: x": 10, "b: y": 80})
