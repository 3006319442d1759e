"""The output folder of `liquid tokenize`, written by any number of parts at once so that a kill costs an unfinished
shard alone.

    OUTPUT/.partial/plan.json           what is being made; a later run goes on only where its own recipe is the same
    OUTPUT/.partial/shard-00003.tar     a shard being written: moved to OUTPUT when it is complete and on the disk
    OUTPUT/.partial/shard-00002.json    the record of a finished shard: its entry of the index, what it left out, which
                                        codes it has
    OUTPUT/.partial/lock                one byte is locked while the plan or the index is made, byte n while shard n is
    OUTPUT/shard-00002.tar              a finished shard
    OUTPUT/dropped.jsonl, index.json    written last; then .partial goes

The locks are POSIX record locks: they work between machines on a shared file system and end with their process.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from data_prep.shard_set.plan import SetPlan
from data_prep.shard_set.writer import PARTIAL, shard_name, shard_number, to_json
from liquid_train.data.shard_format import INDEX_NAME
from liquid_train.errors import UserError
from liquid_train.files import sha256_of, write_synced

PLAN_NAME = "plan.json"
DROPPED_NAME = "dropped.jsonl"
LOCK_NAME = "lock"
PLANNING = 2**40  # the byte that stands for the plan and the index, beyond any shard's


class SetFolder:
    """The set in a folder, finished or in the making, and the steps that complete it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.partial = path / PARTIAL
        self.reload()

    def reload(self) -> None:
        self.index = json_object(self.path / INDEX_NAME)
        begun = self.index or json_object(self.partial / PLAN_NAME)
        self.plan = SetPlan.from_json(begun) if begun else None

    @property
    def recipe(self) -> dict[str, Any] | None:
        """The recipe of the set here, finished or begun; None for no set, {} for shards of an unknown one."""
        if self.plan:
            return self.plan.recipe
        return {} if self.index or self.shard_files() else None

    def shard_files(self) -> list[Path]:
        return sorted(self.path.glob("shard-*.tar"))

    def is_intact(self, entry: dict[str, Any]) -> bool:
        """Whether the tar of an index entry exists and has the recorded content."""
        tar = self.path / entry["url"]
        return bool(tar.is_file() and tar.stat().st_size == entry["bytes"] and sha256_of(tar) == entry["sha256"])

    def is_complete(self) -> bool:
        return self.index is not None and all(self.is_intact(entry) for entry in self.index["shardlist"])

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Create the folder and hold its lock file open: claims end with this. Raises UserError where it cannot be
        written to."""
        self._lock = self._open_lock()
        try:
            yield
        finally:
            if not (self.partial / PLAN_NAME).exists():  # nothing was begun here, or all is done
                self._remove_partial()
            self._lock.close()

    @contextmanager
    def planning(self) -> Iterator[None]:
        """Wait until no other part plans or completes, then read the folder again."""
        fcntl.lockf(self._lock, fcntl.LOCK_EX, 1, PLANNING)
        # another part completed the set, and .partial went with it
        while not _is_at(self._lock, self.partial / LOCK_NAME):
            self._lock.close()
            self._lock = self._open_lock()
            fcntl.lockf(self._lock, fcntl.LOCK_EX, 1, PLANNING)
        try:
            self.reload()
            yield
        finally:
            fcntl.lockf(self._lock, fcntl.LOCK_UN, 1, PLANNING)

    def _open_lock(self) -> IO[bytes]:
        while True:
            try:
                self.partial.mkdir(parents=True, exist_ok=True)
                return open(self.partial / LOCK_NAME, "ab")
            except FileNotFoundError:  # removed between the two lines
                time.sleep(0.01)
            except OSError as error:
                raise UserError(
                    f"tokenize.output={self.path}: cannot be written to: {error.strerror}; choose another folder"
                ) from error

    def claim(self, shards: range) -> None:
        """Keep other processes from making these shards. Raises UserError when one already does."""
        if not shards:
            return
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB, len(shards), shards.start)
        except OSError:
            raise UserError(
                f"tokenize.output={self.path}: another process writes to it; wait for it, or choose another folder"
            ) from None

    def begin(self, plan: SetPlan) -> None:
        """Inside `planning`: prepare for making the set of `plan`, also where that set is finished but damaged.

        Shards of another plan are removed. An index is turned back into records, so that only damaged shards are made
        again.
        """
        if self.plan == plan and self.index is None:
            return
        self.claim(range(PLANNING))  # nobody may be working on what is removed now
        known = self.index if self.plan == plan else None
        records = self.records_of(known) if known else []
        if self.plan != plan:
            for file in [*self.shard_files(), *self.partial.glob("shard-*")]:
                file.unlink()
        write_synced(self.partial / PLAN_NAME, to_json(plan.to_json()))
        for record in records:
            self.record(record)
        (self.path / INDEX_NAME).unlink(missing_ok=True)
        fcntl.lockf(self._lock, fcntl.LOCK_UN, PLANNING, 0)
        self.reload()

    def records_of(self, index: dict[str, Any]) -> list[dict[str, Any]]:
        """Records of a finished set's intact shards; which codes they have is counted again when it is needed."""
        left_out: dict[str, list[dict[str, Any]]] = {}
        if (self.path / DROPPED_NAME).is_file():
            for line in (self.path / DROPPED_NAME).read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                left_out.setdefault(row["shard"], []).append(row)
        return [
            {"entry": e, "left_out": left_out.get(e["url"], []), "codes": None}
            for e in index["shardlist"]
            if self.is_intact(e)
        ]

    def finished(self, shards: range) -> dict[int, dict[str, Any]]:
        """Records of the claimed shards that are done; what is left of unfinished ones is removed."""
        done = {}
        for number in shards:
            record = json_object(self.partial / f"{Path(shard_name(number)).stem}.json")
            if record and self.is_intact(record["entry"]):
                done[number] = record
                continue
            for file in (self.path / shard_name(number), self.partial / shard_name(number)):
                file.unlink(missing_ok=True)
        return done

    def recorded(self) -> dict[int, dict[str, Any]]:
        """Records of all finished shards, whoever made them."""
        return {
            shard_number(file.name): record
            for file in sorted(self.partial.glob("shard-*.json"))
            if (record := json_object(file))
        }

    def record(self, record: dict[str, Any]) -> None:
        """Record a finished shard, so that a later run can continue from it."""
        write_synced(self.partial / f"{Path(record['entry']['url']).stem}.json", to_json(record))

    def complete(self, index: dict[str, Any], left_out: list[dict[str, Any]]) -> None:
        """Inside `planning`: write dropped.jsonl and index.json, with which the set exists."""
        if left_out:
            write_synced(self.path / DROPPED_NAME, b"".join(to_json(row) + b"\n" for row in left_out))
        else:
            (self.path / DROPPED_NAME).unlink(missing_ok=True)
        text = json.dumps(index, sort_keys=True, ensure_ascii=False, indent=1)
        write_synced(self.path / INDEX_NAME, text)
        self._remove_partial()

    def _remove_partial(self) -> None:
        shutil.rmtree(self.partial, ignore_errors=True)  # another part may just be opening its lock file in it
        with contextlib.suppress(OSError):
            self.path.rmdir()  # if it is empty: it was made for nothing


def _is_at(file: IO[bytes], path: Path) -> bool:
    """Whether an open file is still the one under that name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def json_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None where there is no file. Raises UserError when it is something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}; choose another tokenize.output") from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); remove it, or choose another tokenize.output") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON object; remove it, or choose another tokenize.output")
    return value
