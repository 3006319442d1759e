"""The output of `liquid tokenize`, written by any number of parts at once so that a kill costs an unfinished shard
alone.

    OUTPUT/.partial/plan.json           what is being made; a later run goes on only where its own recipe is the same
    OUTPUT/.partial/rows-000007.json    the rows of an input, counted by some part before there is a plan
    OUTPUT/.partial/shard-00003.tar     a shard being written: moved to OUTPUT when it is complete and on the disk
    OUTPUT/.partial/shard-00002.json    the record of a finished shard: its entry of the index, what it left out, how
                                        often it has each code, its samples' rows of samples.npy; written just before
                                        the tar is put into its place
    OUTPUT/.partial/lock                one byte is locked while the plan or the index is made, byte n while shard n is
    OUTPUT/shard-00002.tar              a finished shard
    OUTPUT/dropped.jsonl, samples.npy, index.json    written last, in this order; then .partial goes

Every file that is ever removed or replaced here is one that these names and the index or the records list: what else
lies in the folder is the user's. The locks are POSIX record locks: they work between machines on a shared file system
and end with their process. For an object store they are this machine's alone.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from data_prep.shard_set.place import LocalPlace, TextFile, open_place
from data_prep.shard_set.plan import SetPlan
from data_prep.shard_set.writer import PARTIAL, shard_name, shard_number, to_json
from liquid_train.data.sample_table import SAMPLES_NAME, write_samples
from liquid_train.data.shard_format import INDEX_NAME
from liquid_train.errors import UserError
from liquid_train.files import concerns, lines_of

PLAN_NAME = "plan.json"
DROPPED_NAME = "dropped.jsonl"
LOCK_NAME = "lock"
LARGE = ("codes", "rows")  # of a record: what grows with its samples
# Bytes of the lock file beyond any shard's: the plan and the index; whoever works here (shared); input n being counted
PLANNING, PRESENT, COUNTING = 2**40, 2**41, 2**42


class SetFolder:
    """The set in a folder or at a URL, finished or in the making, and the steps that complete it."""

    def __init__(self, path: str | Path) -> None:
        self.place = open_place(path)
        self.partial = self.place.work
        self.reload()

    def reload(self) -> None:
        self.index = json_object(self.place.file(INDEX_NAME))
        begun = self.index or json_object(self.place.file(f"{PARTIAL}/{PLAN_NAME}"))
        self.plan = SetPlan.from_json(begun) if begun else None

    def __str__(self) -> str:
        return str(self.place)

    @property
    def path(self) -> Path:
        """The local folder of a set that is in one."""
        assert isinstance(self.place, LocalPlace)
        return self.place.path

    @property
    def recipe(self) -> dict[str, Any] | None:
        """The recipe of the set here, finished or begun; None for no set, {} for files of an unknown one."""
        if self.plan:
            return self.plan.recipe
        return {} if self.foreign_files() else None

    def concerns(self, error: OSError) -> bool:
        """Whether an OSError comes from writing here."""
        remote = str(error.filename).startswith(str(self)) and not isinstance(self.place, LocalPlace)
        return remote or concerns(error, self.partial.parent)

    def foreign_files(self) -> list[str]:
        """Files with the names of a set's that neither its index nor its records list: not written by this program."""
        known = {entry["url"] for entry in self.index["shardlist"]} if self.plan and self.index else set()
        known |= {shard_name(number) for number in self.recorded_numbers()} if self.plan else set()
        foreign = [name for name in self.place.names("", "shard-", ".tar") if name not in known]
        if self.plan is None:
            foreign += [name for name in (INDEX_NAME, SAMPLES_NAME, DROPPED_NAME) if self.place.names("", name, name)]
        return foreign

    def has_samples(self) -> bool:
        """Whether something would be lost if this set were begun anew."""
        if self.index is not None:
            return True
        records = map(self.read_record, self.recorded_numbers())
        return any(record["entry"]["nsamples"] for record in records if record)

    def is_intact(self, entry: dict[str, Any]) -> bool:
        return self.place.is_intact(entry)

    def is_complete(self) -> bool:
        return self.index is not None and all(self.is_intact(entry) for entry in self.index["shardlist"])

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Hold the lock file open: claims end with this. Raises UserError where it cannot be written to."""
        self._lock = self._open_lock()
        try:
            yield
        finally:
            if not self.place.names(PARTIAL, PLAN_NAME, PLAN_NAME):  # nothing was begun here, or all is done
                with contextlib.suppress(OSError):  # somebody else is still counting rows, or waiting
                    fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, PRESENT)
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
                lock = open(self.partial / LOCK_NAME, "a+b")  # noqa: SIM115 (closed by opened)
                fcntl.lockf(lock, fcntl.LOCK_SH, 1, PRESENT)
                if _is_at(lock, self.partial / LOCK_NAME):
                    return lock
                lock.close()
            except FileNotFoundError:  # removed between the lines
                time.sleep(0.01)
            except OSError as error:
                raise UserError(
                    f"tokenize.output={self}: cannot be written to: {error.strerror}; choose another folder"
                ) from error

    def claim(self, shards: range) -> None:
        """Keep other processes from making these shards. Raises UserError when one already does."""
        if shards and not self._try_lock(shards.start, len(shards)):
            raise UserError(
                f"tokenize.output={self}: another process writes to it; wait for it, or choose another folder"
            )

    def claim_input(self, number: int) -> bool:
        """Keep other processes from counting the rows of this input; False when one already does."""
        return self._try_lock(COUNTING + number, 1)

    def _try_lock(self, start: int, length: int) -> bool:
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
        except OSError:
            return False
        return True

    def begin(self, plan: SetPlan, again: frozenset[int] = frozenset()) -> None:
        """Inside `planning`: prepare for making the set of `plan`, also where that set is finished but damaged.

        Shards of another plan are removed. An index is turned back into records, so that only damaged shards, and those
        of `again`, are made again.
        """
        if self.plan == plan and self.index is None:
            return
        self.claim(range(PLANNING))  # nobody may be working on what is removed now
        known = self.index if self.plan == plan else None
        records = self.records_of(known, again) if known else []
        if self.plan is not None and self.plan != plan:
            self._remove_set()
        self.place.write(f"{PARTIAL}/{PLAN_NAME}", to_json(plan.to_json()))
        for record in records:
            self.record(record)
        self.place.remove(INDEX_NAME)
        fcntl.lockf(self._lock, fcntl.LOCK_UN, PLANNING, 0)
        self.reload()

    def _remove_set(self) -> None:
        """Remove what the index and the records of the set here list, the index first: what is half removed is no
        set."""
        numbers = self.recorded_numbers()
        urls = [entry["url"] for entry in self.index["shardlist"]] if self.index else []
        if self.index:
            self.place.remove(INDEX_NAME)
            self.place.remove(DROPPED_NAME, SAMPLES_NAME)
        self.place.remove(*{*urls, *map(shard_name, numbers)})
        self.place.remove(*(f"{PARTIAL}/{name}" for name in self.place.names(PARTIAL, "shard-", "")))

    def records_of(self, index: dict[str, Any], without: frozenset[int] = frozenset()) -> list[dict[str, Any]]:
        """Records of a finished set's intact shards; which codes they have is counted again when it is needed."""
        left_out = self.dropped_rows()
        return [
            {"entry": e, "left_out": left_out.get(e["url"], []), "codes": None}
            for e in index["shardlist"]
            if shard_number(e["url"]) not in without and self.is_intact(e)
        ]

    def dropped_rows(self) -> dict[str, list[dict[str, Any]]]:
        """The rows of a finished set's dropped.jsonl, by shard."""
        left_out: dict[str, list[dict[str, Any]]] = {}
        with contextlib.suppress(FileNotFoundError):
            for line in lines_of(self.place.file(DROPPED_NAME).read_text("utf-8")):
                row = json.loads(line)
                left_out.setdefault(row["shard"], []).append(row)
        return left_out

    def finished(self, shards: range) -> dict[int, dict[str, Any]]:
        """Records of the claimed shards that are done, without what is LARGE; what is left of others goes."""
        recorded, tars = self.recorded_numbers(), map(shard_number, self.place.names("", "shard-", ".tar"))
        begun = [shard_number(file.name) for file in self.partial.glob("shard-*.tar")]
        done = {}
        for number in sorted({*recorded, *tars, *begun} & set(shards)):
            record = self.read_record(number)
            if record and self.is_of_plan(record) and self.is_intact(record["entry"]):
                done[number] = {key: value for key, value in record.items() if key not in LARGE}
            else:
                self.remove_shard(number)
        return done

    def is_of_plan(self, record: dict[str, Any]) -> bool:
        """Whether a shard was made for the plan here: in an object store nothing keeps a process from going on with
        another plan. Older versions recorded none."""
        return self.plan is not None and record.get("plan", self.plan.digest) == self.plan.digest

    def remove_shard(self, number: int) -> None:
        """The tar first: one without a record would be nobody's."""
        self.place.remove(shard_name(number))
        self.place.remove(_record_name(number))
        (self.partial / shard_name(number)).unlink(missing_ok=True)

    def recorded_numbers(self) -> list[int]:
        """Which shards have a record, whoever made them; none of the records is read."""
        return [shard_number(name) for name in self.place.names(PARTIAL, "shard-", ".json")]

    def finished_numbers(self) -> set[int]:
        """Shards that have both a record and a tar, whoever made them; none of the records is read."""
        return set(self.recorded_numbers()) & set(map(shard_number, self.place.names("", "shard-", ".tar")))

    def recorded(self) -> dict[int, dict[str, Any]]:
        """Records of all finished shards, whoever made them, without what is LARGE, which would not fit into memory."""
        records = {}
        for number in self.recorded_numbers():
            if record := self.read_record(number):
                records[number] = {key: value for key, value in record.items() if key not in LARGE}
        return records

    def read_record(self, number: int) -> dict[str, Any] | None:
        return json_object(self.place.file(_record_name(number)))

    def record(self, record: dict[str, Any]) -> None:
        """Record a finished shard, so that a later run can continue from it. codes: how often each occurs, packed or
        not, or None."""
        codes = record["codes"]
        content = {**record, "codes": codes if codes is None or isinstance(codes, str) else pack_counts(codes)}
        self.place.write(_record_name(shard_number(record["entry"]["url"])), to_json(content))

    def add(self, record: dict[str, Any], staged: Path) -> None:
        """Record a shard and put its complete tar, a file in `partial`, into its place."""
        self.record(record)
        self.place.take(staged, record["entry"]["url"])

    def complete(self, index: dict[str, Any], left_out: list[dict[str, Any]], rows: Iterable[np.ndarray]) -> None:
        """Inside `planning`: write dropped.jsonl, samples.npy and index.json, with which the set exists. rows: of every
        shard's samples, in order."""
        if left_out:
            self.place.write(DROPPED_NAME, b"".join(to_json(row) + b"\n" for row in left_out))
        else:
            self.place.remove(DROPPED_NAME)
        index |= write_samples(self.partial, rows, sum(entry["nsamples"] for entry in index["shardlist"]))
        self.place.take(self.partial / SAMPLES_NAME, SAMPLES_NAME)
        self.place.write(INDEX_NAME, json.dumps(index, sort_keys=True, ensure_ascii=False, indent=1).encode())
        self._remove_partial()

    def _remove_partial(self) -> None:
        own = ("shard-", "rows-", PLAN_NAME, ".")  # "." begins what a killed write left
        names = [name for name in self.place.names(PARTIAL, "", "") if name.startswith(own)]
        self.place.remove(*(f"{PARTIAL}/{name}" for name in names))
        for file in [
            *self.partial.glob("shard-*.tar"),
            *self.partial.glob(f"*{SAMPLES_NAME}*"),
            self.partial / LOCK_NAME,
        ]:
            file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.partial.rmdir()  # another part may just be opening its lock file in it
            self.partial.parent.rmdir()  # if it is empty: it was made for nothing


def _record_name(number: int) -> str:
    return f"{PARTIAL}/{Path(shard_name(number)).stem}.json"


def pack_counts(counts: Any) -> str:
    """How often each code occurs -> text for a record: a third of what a list of numbers takes, and read at once."""
    return base64.b64encode(zlib.compress(np.asarray(counts, "<u4").tobytes(), 1)).decode()


def unpack_counts(packed: str | list[int]) -> np.ndarray:
    """What pack_counts, or an older version's list, says: int64 [codebook_size]."""
    if isinstance(packed, list):
        return np.array(packed, np.int64)
    return np.frombuffer(zlib.decompress(base64.b64decode(packed)), "<u4").astype(np.int64)


def _is_at(file: IO[bytes], path: Path) -> bool:
    """Whether an open file is still the one under that name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def json_object(path: TextFile) -> dict[str, Any] | None:
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
