"""Sources of samples: one file a source, named as `tokenize.source` names it."""

from __future__ import annotations

from data_prep.settings import TokenizeSettings
from data_prep.source import Source
from liquid_train.registry import Registry

SOURCES: Registry[type[Source]] = Registry("data_prep.sources", "source")


def open_source(settings: TokenizeSettings, seed: int) -> Source:
    """The source that tokenize.source names. Raises UserError for an unknown one and for settings it cannot follow."""
    return SOURCES.find(settings.source, "tokenize.source")(settings, seed)
