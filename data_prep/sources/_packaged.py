"""What sources that come with a Python package have in common."""

from __future__ import annotations

from data_prep.settings import TokenizeSettings
from data_prep.source import refuse_unused
from liquid_train.errors import UserError


def check_packaged(settings: TokenizeSettings, splits: tuple[str, ...], used: tuple[str, ...] = ()) -> None:
    """Raise UserError for a split that is not there and for a setting that the source would ignore."""
    if settings.split not in splits:
        raise UserError(f"tokenize.split={settings.split}: {settings.source} has {' and '.join(splits)}")
    if settings.input is not None:
        raise UserError(
            f"tokenize.input={settings.input}: {settings.source} comes with a package and reads no files; leave "
            "tokenize.input out"
        )
    refuse_unused(settings, used)
