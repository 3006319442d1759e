"""What decides a number besides the model: two numbers may be compared only where their provenance agrees."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np


@cache
def code_version() -> str:
    """The package's version and, in a checkout, its git commit, with "+changes" where files differ from it."""
    try:
        release = version("liquid-train")
    except PackageNotFoundError:
        release = "unknown"
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return release
    try:
        commit = git(root, "rev-parse", "HEAD").strip()
        changes = git(root, "status", "--porcelain", "--untracked-files=no").strip()
    except (OSError, subprocess.SubprocessError):  # no git here, or a folder it does not trust
        return release
    return f"{release} ({commit[:12]}{'+changes' if changes else ''})"


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=10
    ).stdout


@dataclass(frozen=True)
class Provenance:
    """None: the metric knows no such thing. Digests are sha256 in hex.

    n: items measured. data: digest of the questions or the real images. prompts: digest of the texts given to the
    model, in order. sampler: guidance, temperature, top_k, or greedy. resize: the filter between an image and the
    feature network.
    features: what network, which layer; feature_weights: its digest. dtype: of the model's weights and activations.
    """

    n: int
    data: str | None = None
    prompts: str | None = None
    seeds: str | None = None
    sampler: dict[str, Any] | None = None
    resize: str | None = None
    features: str | None = None
    feature_weights: str | None = None
    dtype: str | None = None
    code: str = field(default_factory=code_version)


def as_json(provenance: Provenance) -> dict[str, Any]:
    return asdict(provenance)


def texts_digest(texts: Sequence[str]) -> str:
    """Of texts in their order; where one ends matters."""
    return hashlib.sha256(json.dumps(list(texts), ensure_ascii=False).encode()).hexdigest()


def arrays_digest(arrays: Sequence[np.ndarray] | np.ndarray) -> str:
    """Of images or code grids in their order: shape, type and content of each."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.shape}{array.dtype.str}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def seeds_text(seeds: Sequence[int]) -> str:
    """`0 to 239` for consecutive seeds, else all of them."""
    if list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"{seeds[0]} to {seeds[-1]}"
    return ", ".join(map(str, seeds))
