"""Gemma 2 (Gemma Team 2024, arXiv 2408.00118): as Gemma, with soft-capping of attention and logits, a sliding window in
every second layer, and norms after attention and MLP."""

from __future__ import annotations

from liquid_train.model.families import FAMILIES
from liquid_train.model.families.gemma import Gemma


@FAMILIES.register("gemma2")
class Gemma2(Gemma):
    norms_after = True
