"""JSON as benchmarks publish it, read so that nothing is lost without a word: keys that stand twice, broken lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from liquid_train.errors import UserError
from liquid_train.files import lines_of, naming
from liquid_train.text_normalizer import normalize_json

SHOWN = 5  # names in a message


def read_published(path: Path) -> Any:
    """The content of a file. Raises UserError for a file that is missing, no JSON, or has an object with a key that
    stands twice."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=lambda pairs: unique(pairs, path))
        return normalize_json(content)
    except OSError as error:
        raise UserError(
            f"{path}: {'no such file' if isinstance(error, FileNotFoundError) else error.strerror}; give the "
            "published file"
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}); download it again") from error


def unique(pairs: list[tuple[str, Any]], path: Path) -> dict[str, Any]:
    """An object whose keys are all different."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        refuse(sorted({key for key in keys if keys.count(key) > 1}), f"{path}: keys that stand twice")
    return found


def read_object(path: Path) -> dict[str, Any]:
    """As read_published, of a file that holds one object."""
    content = read_published(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: not an object; download it again")
    return content


def read_rows(path: Path, key: str) -> list[Any]:
    """The list under `key` of the one object in a file. Raises UserError where there is none."""
    rows = read_object(path).get(key)
    if not isinstance(rows, list):
        raise UserError(f"{path}: no list {key!r} there; give the published file")
    return rows


def read_lines(path: Path) -> list[Any]:
    """JSON lines; empty ones are passed over. Raises UserError with the number of a line that is no JSON."""
    try:
        lines = lines_of(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); give the published file") from error
    rows = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                rows.append(normalize_json(json.loads(line)))
            except (json.JSONDecodeError, RecursionError) as error:
                raise UserError(f"{path}: line {number} is not JSON ({error}); download it again") from error
    return rows


def named(names: list[str]) -> str:
    """How many, and the first of them: `7 (a, b, c, d, e, ...)`."""
    return f"{len(names)} ({', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''})"


def refuse(names: list[str], what: str) -> None:
    """Raise UserError with how many and the first names, unless there are none."""
    if names:
        raise UserError(f"{what}: {named(names)}")


def write_json(path: Path, content: dict[str, Any]) -> None:
    with naming(path):
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
