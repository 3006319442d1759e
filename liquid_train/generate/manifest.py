"""What a folder of results was made from, so that the same call again finds that nothing is left to do. Torch-free.

    FOLDER/manifest.json  {"inputs": {...}, "files": {name: sha256}}

A folder is up to date when the inputs are the same and every file has the content it was written with. Results are
written into a staging directory; `publish` moves them in, the manifest last, and takes away what an earlier manifest
lists and the new one does not.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from liquid_train.checkpoint.folder import COMMIT
from liquid_train.errors import UserError
from liquid_train.files import concerns, naming, sha256_of
from liquid_train.image_tokenizer.opening import kind_record
from liquid_train.image_tokenizer.settings import VQSettings

NAME = "manifest.json"
STAGING = ".partial"


def model_identity(folder: Path) -> dict[str, Any]:
    """What tells one model/ folder from another: its checkpoint's COMMIT.json, which lists every file's sha256.

    An HF folder without one: names, sizes and times of its files (hashing the weights would take longer than using
    them).
    """
    commit = folder.parent / COMMIT
    if folder.name == "model" and commit.is_file():
        return {"commit": sha256_of(commit)}
    return {"files": [file_identity(path) for path in sorted(folder.iterdir()) if path.is_file()]}


def vq_identity(vq: VQSettings) -> dict[str, Any]:
    """Which image tokenizer was asked for, as manifests and evaluations record it."""
    files = [file_identity(Path(path)) if Path(path).is_file() else path for path in (vq.config, vq.checkpoint)]
    kind = kind_record(vq)
    return {"vq": files, **({"vq_kind": kind} if kind else {})}


def file_identity(path: Path) -> list[Any]:
    """[name, bytes, time of change] of a file, or [name] where there is none."""
    if not path.is_file():
        return [path.name]
    stat = path.stat()
    return [path.name, stat.st_size, stat.st_mtime_ns]


def is_current(folder: Path, inputs: dict[str, Any]) -> bool:
    """Whether the folder holds, unchanged, what these inputs gave before."""
    manifest = read(folder)
    if not manifest or manifest["inputs"] != json.loads(json.dumps(inputs)):
        return False
    return all(
        (folder / name).is_file() and sha256_of(folder / name) == digest for name, digest in manifest["files"].items()
    )


def read(folder: Path) -> dict[str, Any]:
    """The manifest, or {} where there is none that can be read."""
    try:
        manifest = json.loads((folder / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) and {"inputs", "files"} <= manifest.keys() else {}


@contextmanager
def staging_directory(folder: Path, what: str) -> Iterator[Path]:
    """An empty folder in `folder` to write into, on the same file system; it is gone afterwards.

    what: the setting with its value, for example "output=images". Raises UserError where `folder` cannot be written to;
    files that were written by then are kept in the staging directory.
    """
    partial, kept = folder / STAGING, False
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
    except OSError as error:
        if not concerns(error, folder):
            raise
        files = [path for path in partial.rglob("*") if path.is_file() and not path.name.startswith(".")]
        kept = bool(files)
        rest = f"; {len(files)} file(s) that were written are kept in {partial}" if kept else ""
        raise UserError(
            f"{what}: cannot be written to: {error.strerror or error}{rest}; make room or choose another folder, and "
            "start the same command again"
        ) from error
    finally:
        if not kept:
            shutil.rmtree(partial, ignore_errors=True)
            with suppress(OSError):
                folder.rmdir()  # if it is empty: it was made for nothing


def publish(partial: Path, folder: Path, inputs: dict[str, Any]) -> None:
    """Move every file of `partial` into `folder`, images before the lists that name them, and write the manifest.

    A kill in between leaves whole files without a manifest: the next call does the work again. Files that nobody's
    manifest lists are left alone.
    """
    names = sorted(
        (p.relative_to(partial).as_posix() for p in partial.rglob("*") if p.is_file()),
        key=lambda name: (name.endswith((".json", ".jsonl")), name),
    )
    files = {name: sha256_of(partial / name) for name in names}
    old = read(folder).get("files", {})
    (folder / NAME).unlink(missing_ok=True)
    for name in old.keys() - files.keys():
        if (folder / name).resolve().is_relative_to(folder.resolve()):
            (folder / name).unlink(missing_ok=True)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(partial / name, folder / name)
    content = json.dumps({"inputs": inputs, "files": files}, indent=1, ensure_ascii=False)
    with naming(partial / NAME):
        (partial / NAME).write_text(content, encoding="utf-8")
    os.replace(partial / NAME, folder / NAME)


def text_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
