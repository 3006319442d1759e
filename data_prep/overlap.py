"""Refuses an output that overlaps the input: the next start would read what this one writes."""

from __future__ import annotations

import os
from fnmatch import fnmatchcase
from functools import cache
from glob import has_magic

from data_prep.settings import TokenizeSettings
from data_prep.source import Source
from liquid_train.errors import UserError

WRITTEN = ("shard-00000.tar", "dropped.jsonl", "index.json")  # files of an output that a pattern may match
REMEDY = "choose a folder of its own for the output"


def check_apart(t: TokenizeSettings, source: Source) -> None:
    """Raise UserError where tokenize.output lies inside the input, or the input inside the output; for a URL too."""
    output = _real(t.output)
    # a list's images may lie around the output: nothing but what the list names is read
    around = [("tokenize.images", t.images)] if t.images is not None else []
    for key, place in [*around, *(("tokenize.input", place) for place in source.places())]:
        real = _real(str(place))
        if _is_within(real, output):
            raise UserError(f"tokenize.output={t.output}: {key}={place} lies inside it; {REMEDY}")
        if key == "tokenize.input" and _is_within(output, real):
            raise UserError(f"tokenize.output={t.output}: lies inside {key}={place}; {REMEDY}")
    if t.input is not None and _would_match(t.input, output):
        raise UserError(
            f"tokenize.output={t.output}: what is written there would be input as well, by tokenize.input={t.input}; "
            f"{REMEDY}"
        )


def _real(path: str) -> str:
    if "://" in path:
        return path.removeprefix("file://").rstrip("/")
    folder, name = os.path.split(os.path.abspath(os.path.expanduser(path)))
    real = os.path.join(_real_folder(folder), name)
    return os.path.realpath(real) if os.path.islink(real) or not name else real


@cache  # of a hundred thousand tars in a folder, that is resolved once
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)


def _is_within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _would_match(pattern: str, output: str) -> bool:
    """Whether a pattern with wildcards matches a file in the output, once that is there."""
    steps = os.path.abspath(os.path.expanduser(pattern)).split("/")
    fixed = next((n for n, step in enumerate(steps) if has_magic(step)), len(steps))
    if fixed == len(steps) or "://" in pattern:
        return False
    beginning = _real_folder("/".join(steps[:fixed]) or "/").rstrip("/") + "/"
    written = [f"{output}/{name}" for name in WRITTEN if output.startswith(beginning)]
    return any(_steps_match(path[len(beginning) :].split("/"), steps[fixed:]) for path in written)


def _steps_match(path: list[str], pattern: list[str]) -> bool:
    """As glob does: "**" stands for any number of folders, any other step for one."""
    if not pattern or not path:
        return not pattern and not path
    if pattern[0] == "**":
        return any(_steps_match(path[n:], pattern[1:]) for n in range(len(path)))
    return fnmatchcase(path[0], pattern[0]) and _steps_match(path[1:], pattern[1:])
