"""The 24 captions of easy-VQA, and what a prompt asks for. Torch-free."""

from __future__ import annotations

import re

from data_prep.sources.easy_vqa import COLORS, SHAPES

CAPTIONS = [f"a {color} {shape}" for shape in SHAPES for color in COLORS]


def named(prompt: str) -> tuple[str | None, str | None]:
    """The colour and the shape that a prompt names, None where it names none."""
    words = re.findall(r"[a-z]+", prompt.lower())
    return next((c for c in COLORS if c in words), None), next((s for s in SHAPES if s in words), None)
