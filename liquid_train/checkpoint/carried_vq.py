"""The image tokenizer's files in a checkpoint, so that it can be moved, away from the paths of its training.

    model/vq/vqgan.yaml, model/vq/vqgan.ckpt      copies of vq.config and vq.checkpoint; in liquid.json "model:vq/..."

Checkpoints of one run share one copy on the disk (hard links). Files inside the installed package are not copied.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

from liquid_train.image_tokenizer.settings import TAMING
from liquid_train.model.backbone import IN_MODEL, ModelCard

FOLDER = "vq"


def carry_vq(card: ModelCard, folder: Path) -> ModelCard:
    """Copy the files that the card names into `folder`, a model/ that is being written; the card that names them
    there. Raises OSError."""
    if card.vq_kind != TAMING:  # what another kind reads, only that knows
        return card
    return replace(card, vq_config=_carried(card.vq_config, folder), vq_checkpoint=_carried(card.vq_checkpoint, folder))


def _carried(path: str, folder: Path) -> str:
    source = Path(path)
    if path.startswith("package:") or not source.is_file():
        return path
    (folder / FOLDER).mkdir(exist_ok=True)
    target = folder / FOLDER / source.name
    if not any(
        _link(other, target, source) for other in folder.parents[1].glob(f"step-*/model/{FOLDER}/{source.name}")
    ):
        shutil.copy2(source, target)  # with its time of change, by which the next checkpoint knows the copy
    return f"{IN_MODEL}{FOLDER}/{source.name}"


def _link(other: Path, target: Path, source: Path) -> bool:
    """Link to another checkpoint's copy of the same file; False where it is of other content, or cannot be linked."""
    a, b = other.stat(), source.stat()
    if (a.st_size, a.st_mtime_ns) != (b.st_size, b.st_mtime_ns):
        return False
    try:
        os.link(other, target)
    except OSError:  # a file system without links
        return False
    return True
