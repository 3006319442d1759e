"""Writing one tar of a shard set: webdataset's format, with the entry that index.json needs of it (DESIGN section 4).

The bytes of a set depend on its samples alone: no clock, no user, no machine in them.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from liquid_train.files import move_into_place, sha256_of

CHUNK_SAMPLES = 256
PARTIAL = ".partial"


def shard_name(number: int) -> str:
    return f"shard-{number:05d}.tar"


def shard_number(name: str) -> int:
    return int(Path(name).stem.removeprefix("shard-"))


def to_json(value: Any) -> bytes:
    """Compact JSON with sorted keys: the same value gives the same bytes."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode(
        "utf-8", "backslashreplace"
    )


def to_npy(codes: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, codes, allow_pickle=False)
    return buffer.getvalue()


class ShardWriter:
    """One tar in the making. Leave with `finish`, or with `abort`, which removes what was written."""

    def __init__(self, output: Path, number: int) -> None:
        self.number = number
        self.final = output / shard_name(number)
        self.staging_directory = output / PARTIAL / shard_name(number)
        self.totals: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()  # reason -> rows that were to be in this shard
        self._chunks: list[list[int]] = []
        self._file = open(self.staging_directory, "wb")  # noqa: SIM115 (closed by finish or abort)
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
            self._add_file(f"{key}.txt", text.encode("utf-8", "backslashreplace"))
        self.totals.update(
            samples=1,
            text_characters=len(text or ""),
            questions=len(info.get("questions", ())),
            messages=len(info.get("messages", ())),
        )

    def _add_file(self, name: str, content: bytes) -> None:
        member = tarfile.TarInfo(name)  # time, user and group stay 0 and empty
        member.size, member.mode = len(content), 0o644
        self._tar.addfile(member, io.BytesIO(content))
        self._tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every header

    def finish(self) -> dict[str, Any]:
        """Complete the tar, put it into its place and return its entry of the index."""
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        entry = {
            "url": self.final.name,
            "nsamples": self.totals["samples"],
            "bytes": self.staging_directory.stat().st_size,
            "sha256": sha256_of(self.staging_directory),
            "chunks": self._chunks,
            "totals": {k: v for k, v in sorted(self.totals.items()) if v or k != "messages"},
            "dropped": dict(sorted(self.dropped.items())),
        }
        move_into_place(self.staging_directory, self.final)
        return entry

    def abort(self) -> None:
        self._file.close()
        self.staging_directory.unlink(missing_ok=True)
