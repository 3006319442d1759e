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

from liquid_train.data.sample_table import sample_row, to_rows
from liquid_train.data.shard_format import Sample
from liquid_train.files import move_into_place, naming, sha256_of

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
    """One tar in the making. Leave with `finish` or `close`, or with `abort`, which removes what was written.

    rows: what samples.npy says of the samples so far, ROW [n].
    """

    def __init__(self, output: Path, number: int) -> None:
        self.number = number
        self.final = output / shard_name(number)
        self.staged = output / PARTIAL / shard_name(number)
        self.totals: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()  # reason -> rows that were to be in this shard
        self._rows: list[tuple[int, ...]] = []
        self._file = open(self.staged, "wb")  # noqa: SIM115 (closed by finish or abort)
        self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115

    def add(
        self, key: str, info: dict[str, Any], text: str | None, codes: np.ndarray | None, ids: np.ndarray | None = None
    ) -> None:
        """Append one sample: KEY.codes.npy, KEY.ids.npy, KEY.json, KEY.txt, as far as it has them."""
        assert key and "." not in key.rpartition("/")[2], f"key {key!r}: webdataset ends a key at the first dot"
        files = {}
        if codes is not None:
            files["codes.npy"] = to_npy(codes)
        if ids is not None:
            files["ids.npy"] = to_npy(ids)
        files["json"] = to_json(info)
        if text is not None:
            files["txt"] = text.encode("utf-8", "backslashreplace")
        self._add_files(files, key, info, text, codes, ids)

    def copy(self, sample: Sample, files: dict[str, bytes]) -> None:
        """Append a sample of another set with its files as they are, also those that nothing here reads."""
        self._add_files(
            files, sample["key"], sample["info"], sample.get("text"), sample.get("codes"), sample.get("ids")
        )

    def _add_files(
        self,
        files: dict[str, bytes],
        key: str,
        info: dict[str, Any],
        text: str | None,
        codes: np.ndarray | None,
        ids: np.ndarray | None,
    ) -> None:
        """Append the files of one sample, extension -> content; what they hold is counted."""
        written = None if text is None else text.encode("utf-8", "backslashreplace").decode()
        self._rows.append(sample_row(self._file.tell(), key, info, written, codes))
        for extension, content in files.items():
            self._add_file(f"{key}.{extension}", content)
        if codes is not None:
            self.totals.update(images=1, image_codes=codes.size, captions=text is not None, no_caption=text is None)
        if ids is not None:
            self.totals.update(text_ids=ids.size)
        self.totals.update(
            samples=1,
            text_characters=len(text or ""),
            questions=len(info.get("questions") or ()),
            messages=len(info.get("messages") or ()),
        )

    @property
    def rows(self) -> np.ndarray:
        return to_rows(self._rows)

    def _add_file(self, name: str, content: bytes) -> None:
        member = tarfile.TarInfo(name)  # time, user and group stay 0 and empty
        member.size, member.mode = len(content), 0o644
        with naming(self.staged):
            self._tar.addfile(member, io.BytesIO(content))
        self._tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every header

    def finish(self) -> dict[str, Any]:
        """Complete the tar, put it into its place and return its entry of the index."""
        entry = self.close()
        move_into_place(self.staged, self.final)
        return entry

    def close(self) -> dict[str, Any]:
        """Complete the tar where it is, in `staged`, and return its entry of the index."""
        with naming(self.staged):
            self._tar.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        return {
            "url": self.final.name,
            "nsamples": self.totals["samples"],
            "bytes": self.staged.stat().st_size,
            "sha256": sha256_of(self.staged),
            "totals": {k: v for k, v in sorted(self.totals.items()) if v or k not in ("messages", "text_ids")},
            "dropped": dict(sorted(self.dropped.items())),
        }

    def abort(self) -> None:
        self._file.close()
        self.staged.unlink(missing_ok=True)
