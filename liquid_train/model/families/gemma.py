"""Gemma (Gemma Team 2024, arXiv 2403.08295). transformers' embedding module scales by the root of the width itself."""

from __future__ import annotations

from liquid_train.model.families import FAMILIES, Family


@FAMILIES.register("gemma")
class Gemma(Family):
    special_tokens = (("<unused0>", "<unused1>", "<unused2>"),)
    norms_add_one = True
    fused_decode = True
