"""Keys that rows must have: that none has one is a wrong setting, said before anything is encoded."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data_prep.settings import TokenizeSettings
from data_prep.source import DAMAGED, Survey
from data_prep.sources._captions import value_of
from data_prep.sources._rows import WHOLE_FILE, ListRow
from liquid_train.errors import UserError

OF_TAR = ("__key__", "__url__")  # not of a row: a sample's key in its tar, and the tar's name, as webdataset calls them
SHOWN = 12  # keys of a row that a message names


class NeededKeys:
    """Looks at rows until each of `needed`, {setting: names it may stand under}, was met."""

    def __init__(self, settings: TokenizeSettings, needed: dict[str, tuple[str, ...]]) -> None:
        self.settings, self.missing = settings, dict(needed)
        self.kept = {name for name in settings.keep or () if name not in OF_TAR}
        self.seen: dict[str, None] = {}  # the keys of rows, in order

    def look_at(self, row: dict[str, Any]) -> None:
        if self.complete:
            return
        if len(self.seen) < SHOWN:
            self.seen.update(dict.fromkeys(row))
        for setting, names in list(self.missing.items()):
            if any(value_of(row, name) is not None for name in names):
                del self.missing[setting]
        self.kept -= {name for name in self.kept if value_of(row, name) is not None}

    @property
    def complete(self) -> bool:
        """Whether everything was met."""
        return not self.missing and not self.kept

    def refuse_missing(self, path: Path) -> None:
        """Raise UserError for what no row has had. Rows that are no objects say what is wrong themselves."""
        for setting, names in self.missing.items() if self.seen else ():
            raise missing_key(self.settings, setting, names, path, list(self.seen))
        if self.kept and self.seen:
            raise UserError(
                f"tokenize.keep={min(self.kept)}: no row of {path} has it; they have {', '.join(map(str, self.seen))}; "
                "leave it out"
            )


def survey_rows(name: str, path: Path, rows: Iterable[ListRow], needed: NeededKeys) -> Survey:
    """An input's rows, and the first from which on they are lost. Raises UserError where none has a needed key."""
    count, damage = 0, None
    for row in rows:
        if isinstance(row, dict):
            needed.look_at(row)
        elif row in WHOLE_FILE and damage is None:
            damage = f"{name}, row {count}" + (f": {row}" if row != DAMAGED else "")
        count += 1
    needed.refuse_missing(path)
    return Survey(count, damage=damage)


def missing_key(
    settings: TokenizeSettings, setting: str, names: tuple[str, ...], path: Path, there: list[str]
) -> UserError:
    """The error for a file without what tokenize.`setting` names, or else without any of the usual `names`."""
    asked = getattr(settings, setting)
    lacks = f"={asked}: {path} does not have it" if asked else f" has no value: {path} has none of {', '.join(names)}"
    shown = ", ".join(map(str, there[:SHOWN])) + (", ..." if len(there) > SHOWN else "")
    urls = setting == "image_key" and any("url" in str(key).lower() or "://" in str(key) for key in there)
    fetch = "; where it has only the URLs of images, fetch these first (img2dataset does)" if urls else ""
    return UserError(f"tokenize.{setting}{lacks}; it has {shown}: name the right one with tokenize.{setting}{fetch}")
