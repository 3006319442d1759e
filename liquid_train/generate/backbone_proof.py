"""Whether a backbone trains and decodes right here: proved once for each architecture and set of versions.

What was proved is kept in $XDG_CACHE_HOME/liquid_train/proofs (~/.cache by default), one small file an architecture.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from transformers import PreTrainedConfig

import liquid_train
from liquid_train.errors import UserError
from liquid_train.files import dispensable
from liquid_train.generate.decoding_proof import prove_decoding
from liquid_train.model.architecture import is_transformers_own
from liquid_train.model.backbone import backbone_key
from liquid_train.model.proof import Unproven, prove_training, small_copy
from liquid_train.model.settings import BackboneConfig

VERSION = 1  # of the proof: to be raised with every change of what it finds out
UNIMPORTANT = ("vocab_size", "_name_or_path", "dtype", "bos_token_id", "eos_token_id", "pad_token_id")


class Proof(NamedTuple):
    """What a proof found. wrong: what does not hold; None: all holds. difference: the largest relative one."""

    wrong: str | None
    difference: float = 0.0


def prove(config: PreTrainedConfig) -> Proof:
    """Prove an architecture on this machine: a second or two. What a user's own architecture raises keeps its
    traceback."""
    try:
        with without_warnings():
            small = small_copy(config)
            return Proof(None, max(prove_training(small), prove_decoding(small)))
    except Unproven as error:
        if error.__cause__ is not None and not is_transformers_own(type(config)):
            raise error.__cause__ from None
        return Proof(str(error))


@contextmanager
def without_warnings() -> Iterator[None]:
    """transformers warns of kernels that are missing here: of the user's own model that is news, of the copy noise."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)
        transformers.utils.logging.warning_once.cache_clear()  # else what was held back is never said again


def check_trainable(backbone: BackboneConfig, config: PreTrainedConfig) -> None:
    """Raises UserError where something does not hold for the backbone, whose config it is, unless backbone.unproven."""
    if not backbone.unproven:
        remedy = "choose another backbone, or train it all the same with backbone.unproven=true"
        check_proof(config, backbone_key(backbone), remedy)


def check_proof(config: PreTrainedConfig, key: str, remedy: str) -> None:
    """Raises UserError, which begins with `key` and ends with `remedy`, where something does not hold."""
    found = remembered_proof(config)
    if found.wrong is not None:
        raise UserError(f"{key}: {config.model_type} does not come out right here: {found.wrong}; {remedy}")


def remembered_proof(config: PreTrainedConfig) -> Proof:
    """The proof of an earlier time with the same versions, or one made now and kept."""
    file = proof_file(config)
    try:
        wrong, difference = json.loads(file.read_text())
        if wrong is None or isinstance(wrong, str):
            return Proof(wrong, float(difference))
    except (OSError, ValueError, TypeError):
        pass  # none yet, or a damaged one: it is made again
    found = prove(config)
    with dispensable(f"{file.parent} (proofs of backbones)"):
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f"{file.name}.{os.getpid()}")  # all ranks of a machine may write it at the same time
        partial.write_text(json.dumps(found))
        partial.replace(file)
    return found


def proof_file(config: PreTrainedConfig) -> Path:
    """Where the proof of an architecture is kept: by its config, and the versions of what computes it."""
    versions = (VERSION, liquid_train.__version__, torch.__version__, transformers.__version__)
    fields: dict[str, Any] = {k: v for k, v in config.to_dict().items() if k not in UNIMPORTANT}
    content = json.dumps([versions, fields], sort_keys=True, default=str)
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.sha256(content.encode()).hexdigest()[:32]
    return home / "liquid_train" / "proofs" / f"{config.model_type}-{digest}.json"
