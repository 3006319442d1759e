"""Where the documents of a packed row lie, and how they are padded."""

from __future__ import annotations

import torch

from liquid_train.data.document_plan import DocumentPlan, padded_length


def test_padded_lengths_waste_at_most_a_quarter() -> None:
    for length in range(32, 5000):
        assert length <= padded_length(length) <= 1.25 * length


def test_every_token_is_gathered_and_found_again() -> None:
    lengths = [3, 40, 1, 9, 33, 40]
    plan = DocumentPlan.from_lengths(lengths)
    gathered = torch.cat([tokens.flatten() for tokens in plan.gather])
    assert gathered[plan.restore].tolist() == list(range(sum(lengths)))
    assert plan.starts.tolist() == [0, 3, 43, 44, 53, 86, 126] and plan.longest == 40
    for tokens in plan.gather:  # a row is one document: its tokens in order, then its last one again
        assert all(row.tolist() == sorted(row.tolist()) for row in tokens)
