"""Whether a folder may hold a judge's model. Torch-free."""

from __future__ import annotations

from pathlib import Path

from liquid_train.errors import UserError


def check_folder(key: str, path: str | None, what: str) -> None:
    """Raises UserError for a path of `key` that is no folder; None is no path."""
    if path is not None and not Path(path).is_dir():
        raise UserError(f"{key}={path}: no such folder; give that of {what}")


def check_model_folder(key: str, path: str | None, what: str) -> None:
    """The same, and for a folder without config.json."""
    check_folder(key, path, what)
    if path is not None and not (Path(path) / "config.json").is_file():
        raise UserError(f"{key}={path}: no config.json there; give the folder of {what}")
