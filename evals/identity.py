"""What tells files and settings of one evaluation from those of another, for its cache key. Torch-free."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from liquid_train.generate.manifest import file_identity, text_digest
from liquid_train.measurement.settings import FeaturesConfig


def features_identity(features: FeaturesConfig) -> list[Any]:
    """kind and the rest, and the network's file."""
    return [asdict(features), paths_identity([features.path])]


def folder_identity(*folders: str | None) -> str:
    """Digest of the names, sizes and times of all files below the folders; None stands for no folder."""
    return text_digest(json.dumps([file_identity(f) for path in folders if path for f in files_below(Path(path))]))


def paths_identity(paths: list[str | None]) -> str:
    """The same of files and folders."""
    return folder_identity(*paths)


def files_below(path: Path) -> list[Path]:
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
