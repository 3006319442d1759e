"""Cutting long texts into documents."""

from __future__ import annotations

from data_prep.encode.documents import cut_paragraphs


def test_a_paragraph_that_just_fits_is_not_cut() -> None:
    """Seven characters of seven: it begins a document of its own, and none of its lines joins the one before."""
    assert list(cut_paragraphs("a\n\nbbb\nbbb", 7)) == ["a", "bbb\nbbb"]
    assert list(cut_paragraphs("a\n\nbbb\nbbb", 6)) == ["a\n\nbbb", "bbb"]
