"""Random choices that depend on a key alone: never on a worker, a rank, or earlier draws."""

from __future__ import annotations

import hashlib

import numpy as np


def keyed_generator(*key: object) -> np.random.Generator:
    """A generator seeded by the key's parts (their repr): the same on every machine and in every process."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(int.from_bytes(digest, "little")))
