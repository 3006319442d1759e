"""Writing a shard set so that a kill at any moment costs the unfinished shard alone (DESIGN section 4).

    OUTPUT/.partial/shard-00003.tar     the shard being written: moved to OUTPUT when it is complete and on the disk
    OUTPUT/.partial/recipe.json         what is being made; a later run goes on only where its own recipe is the same
    OUTPUT/.partial/shard-00002.json    entry of a finished shard
    OUTPUT/shard-00002.tar              a finished shard
    OUTPUT/index.json                   written last; then .partial goes

The bytes of a set depend on its samples alone: no clock, no user, no machine in them.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import shutil
import tarfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from liquid_train.data.shards import INDEX_NAME

CHUNK_SAMPLES = 256
PARTIAL = ".partial"


def shard_name(number: int) -> str:
    return f"shard-{number:05d}.tar"


def to_json(value: Any) -> bytes:
    """Compact JSON with sorted keys: the same value gives the same bytes."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


def to_npy(codes: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, codes, allow_pickle=False)
    return buffer.getvalue()


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def move_into_place(aside: Path, final: Path) -> None:
    """Rename a file that is written and synced; after this it is there under its final name, also after a power cut."""
    os.replace(aside, final)
    folder = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_whole(path: Path, content: bytes, aside: Path) -> None:
    """Write `content` to `path` by way of `aside`: all of it is there, or nothing."""
    with open(aside, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    move_into_place(aside, path)


class ShardWriter:
    """One tar in the making. Leave with `finish`, or with `abort`, which removes what was written."""

    def __init__(self, output: Path, number: int) -> None:
        self.final = output / shard_name(number)
        self.aside = output / PARTIAL / shard_name(number)
        self.totals: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()  # reason -> samples that were to be in this shard
        self._chunks: list[list[int]] = []
        self._file = open(self.aside, "wb")  # noqa: SIM115 (closed by finish or abort)
        self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115

    def add(self, key: str, info: dict[str, Any], text: str | None, codes: np.ndarray | None) -> None:
        """Append one sample: KEY.codes.npy, KEY.json, KEY.txt, as far as it has them."""
        assert key and "." not in key.rpartition("/")[2], f"key {key!r}: webdataset ends a key at the first dot"
        if self.totals["samples"] % CHUNK_SAMPLES == 0:
            self._chunks.append([self.totals["samples"], 0, self._file.tell()])
        self._chunks[-1][1] += 1
        if codes is not None:
            self._add_file(f"{key}.codes.npy", to_npy(codes))
            self.totals.update(images=1, image_codes=codes.size, captions=text is not None, no_caption=text is None)
        self._add_file(f"{key}.json", to_json(info))
        if text is not None:
            self._add_file(f"{key}.txt", text.encode())
        self.totals.update(samples=1, text_characters=len(text or ""), questions=len(info.get("questions", ())))

    def _add_file(self, name: str, content: bytes) -> None:
        member = tarfile.TarInfo(name)  # time, user and group stay 0 and empty
        member.size, member.mode = len(content), 0o644
        self._tar.addfile(member, io.BytesIO(content))

    def finish(self) -> dict[str, Any]:
        """Complete the tar, put it into its place and return its entry of the index."""
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        entry = {
            "url": self.final.name,
            "nsamples": self.totals["samples"],
            "bytes": self.aside.stat().st_size,
            "sha256": file_sha256(self.aside),
            "chunks": self._chunks,
            "totals": dict(sorted(self.totals.items())),
            "dropped": dict(sorted(self.dropped.items())),
        }
        move_into_place(self.aside, self.final)
        return entry

    def abort(self) -> None:
        self._file.close()
        self.aside.unlink(missing_ok=True)


class SetFolder:
    """The output folder of one job: which set it holds or is being made in it, and the steps by which one becomes complete."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.partial = path / PARTIAL
        self._read_state()

    def _read_state(self) -> None:
        self.index = _read_json(self.path / INDEX_NAME)
        self.begun = _read_json(self.partial / "recipe.json")

    @property
    def recipe(self) -> dict[str, Any] | None:
        """The recipe of what lies here, finished or begun; None where there is nothing, {} where nobody knows."""
        for known in (self.index, self.begun):
            if known is not None:
                return dict(known.get("recipe", {}))
        return {} if self.shard_files() else None

    def shard_files(self) -> list[Path]:
        return sorted(self.path.glob("shard-*.tar"))

    def is_intact(self, entry: dict[str, Any]) -> bool:
        """Whether the tar of an index entry is there with the content it is to have."""
        tar = self.path / entry["url"]
        return tar.is_file() and tar.stat().st_size == entry["bytes"] and file_sha256(tar) == entry["sha256"]

    def is_complete(self) -> bool:
        return self.index is not None and all(self.is_intact(entry) for entry in self.index["shardlist"])

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Create the folder and keep others from writing to it. Raises ValueError when somebody does, or it cannot be made."""
        try:
            self.partial.mkdir(parents=True, exist_ok=True)
            lock = open(self.partial / "lock", "w")  # noqa: SIM115 (held as long as the with block)
        except OSError as error:
            raise ValueError(f"tokenize.output={self.path}: cannot be written to: {error.strerror}; choose another folder") from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"tokenize.output={self.path}: another process writes to it; wait for it, or choose another folder") from None
            self._read_state()  # it may have finished in the meantime
            yield

    def begin(self, identity: dict[str, Any]) -> dict[int, dict[str, Any]]:
        """Prepare for making the set that `identity` (recipe, encoder) names: shard number -> entry of what is done already.

        Anything made otherwise is removed; an index becomes entries again, so that only its damaged shards are made anew.
        """
        known = self.index or self.begun or {}
        kept: list[dict[str, Any]] = []
        if {k: known.get(k) for k in identity} == identity:
            kept = self.index["shardlist"] if self.index else [e for e in map(_read_json, sorted(self.partial.glob("shard-*.json"))) if e]
        kept = [entry for entry in kept if self.is_intact(entry)]
        names = {entry["url"] for entry in kept}
        write_whole(self.partial / "recipe.json", to_json(identity), self.partial / "recipe.aside")
        for entry in kept:
            self.record(entry)
        (self.path / INDEX_NAME).unlink(missing_ok=True)
        for file in [*self.shard_files(), *self.partial.glob("shard-*")]:
            if file.with_suffix(".tar").name not in names or file.parent == self.partial and file.suffix == ".tar":
                file.unlink()
        return {int(entry["url"].removeprefix("shard-").removesuffix(".tar")): entry for entry in kept}

    def record(self, entry: dict[str, Any]) -> None:
        """Note a finished shard, for a later run that goes on from here."""
        name = Path(entry["url"]).stem
        write_whole(self.partial / f"{name}.json", to_json(entry), self.partial / f"{name}.aside")

    def complete(self, index: dict[str, Any]) -> None:
        """Write index.json: from now on the set exists."""
        text = json.dumps(index, sort_keys=True, ensure_ascii=False, indent=1)
        write_whole(self.path / INDEX_NAME, text.encode(), self.partial / "index.aside")
        shutil.rmtree(self.partial)


def _read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None where there is no file. Raises ValueError when it is something else."""
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); remove it, or choose another tokenize.output") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: not a JSON object; remove it, or choose another tokenize.output")
    return value
