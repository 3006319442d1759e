"""Which checkpoint a run resumes from, and whether it may: the rules of checkpoint.resume. torch is not imported."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from liquid_train.checkpoint.folder import TRAINER, committed, problems, step_of
from liquid_train.config.schema import TrainJob
from liquid_train.data.settings import SourceConfig
from liquid_train.data.shards import ShardSet
from liquid_train.data.stream_state import ORDER_VERSION, StreamState
from liquid_train.errors import UserError
from liquid_train.files import read_json
from liquid_train.image_tokenizer.opening import tokenizer_files

# A checkpoint with other values of these cannot be continued: weights, ids or optimizer state would not fit.
FIXED = ("backbone", "vq", "optimizer.kind")
# These determine the order of the data: a change needs data.allow_change.
ORDER = (
    "seed",
    "data.sources",
    "data.seq_len",
    "data.global_batch",
    "data.streams",
    "data.window",
    "data.unconditional",
    "data.prompts",
    "data.weight_unit",
    "data.order_version",
)
# These belong to the machine or the occasion, not to the run: a change is not reported.
FREE = (
    "run",
    "log",
    "launch",
    "tracker",
    "checkpoint",
    "evals",
    "data.workers",
    "data.heldout",
    "data.allow_change",
    "data.cache",
    "data.cache_gib",
    "data.max_bad",
    "data.retry_seconds",
    "train.micro_batch",
    "train.batch_digest",
    "train.hang_timeout",
    "train.profile_steps",
    "parallel",
)
ORDER_KEY = "data.order_version"  # under which positions of another version of the data's order are listed
SHARDS = "data.sources.{}.shards"  # the key under which a change of a shard set's content is listed
SAME_POSITIONS = ("weight", "max_epochs")  # keys of a source that do not move any document

Changes = dict[str, tuple[Any, Any]]  # dotted key -> (old, new)


def find_checkpoint(config: TrainJob) -> Path | None:
    """The checkpoint to resume from, or None for a fresh start. Raises UserError when checkpoint.resume names no
    complete checkpoint.

    A run that branched off another run's checkpoint resumes from its own newest one once it has any, so that the same
    command serves the start and every restart.
    """
    if config.checkpoint.resume == "none":
        return None
    own = committed(config.run.dir)
    path = Path(config.checkpoint.resume)
    branch = path.resolve().parent != (Path(config.run.dir) / "checkpoints").resolve()
    if config.checkpoint.resume == "auto" or (branch and own):
        return own[-1] if own else None
    wrong = problems(path) if path.is_dir() else ["no such folder"]
    if wrong:
        raise UserError(
            f"checkpoint.resume={path}: not a complete checkpoint ({wrong[0]}); give auto, none or a "
            "checkpoints/step-NNNNNNNN folder"
        )
    return path


def config_differences(old: Any, new: Any, prefix: str = "") -> Changes:
    """Dotted keys whose values differ -> (old, new)."""
    if isinstance(old, dict) and isinstance(new, dict):
        found: Changes = {}
        for key in sorted({*old, *new}):
            found |= config_differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)
        return found
    return {} if old == new else {prefix: (old, new)}


def changes_since(checkpoint: Path, config: TrainJob, shards: dict[str, str]) -> Changes:
    """Config keys whose values differ from those the checkpoint was trained with. shards: current digest of each
    source's shard set; a set that was only moved counts as the same.

    Raises UserError where the checkpoint cannot be continued with these changes.
    """
    trainer = read_json(checkpoint / TRAINER)
    trained = filled(trainer["config"], asdict(TrainJob()))
    trained["data"]["sources"] = {k: filled(v, asdict(SourceConfig())) for k, v in trained["data"]["sources"].items()}
    changed = {
        k: v
        for k, v in config_differences(trained, json.loads(json.dumps(asdict(config)))).items()
        if not _under(k, FREE)
    }
    for name, digest in shards.items():
        before = trainer.get("shards", {}).get(name)  # checkpoints of older versions have none
        if before == digest:
            changed.pop(f"data.sources.{name}.path", None)
        elif before is not None:
            changed[SHARDS.format(name)] = (f"digest {before[:12]}", digest[:12])
    order = trainer.get("order_version", 1)  # not in checkpoints of older versions
    if order != ORDER_VERSION and trainer["step"] < planned_steps(config):
        changed[ORDER_KEY] = (order, ORDER_VERSION)
    fatal = [k for k in changed if _under(k, FIXED) or (_under(k, ORDER) and not config.data.allow_change)]
    if fatal == [ORDER_KEY]:
        raise UserError(
            f"{checkpoint} was written by a version of liquid_train that reads the data in another order "
            f"({order}, now {ORDER_VERSION}); finish the run with that version, start over with "
            "checkpoint.resume=none, or go on with the data from its beginning with data.allow_change=true"
        )
    if fatal:
        remedy = (
            ""
            if any(_under(k, FIXED) for k in fatal)
            else "; or go on with the changed data with data.allow_change=true"
        )
        raise UserError(
            f"{checkpoint} was trained under another config ({'; '.join(as_lines({k: changed[k] for k in fatal}))}); "
            f"give those values back, choose another run.dir, or start over with checkpoint.resume=none{remedy}"
        )
    return changed


def filled(stored: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """A stored config, completed with the defaults of keys that did not exist when it was written."""
    both = defaults | stored
    return {
        k: filled(v, defaults[k]) if isinstance(v, dict) and isinstance(defaults.get(k), dict) else v
        for k, v in both.items()
    }


def as_lines(changes: Changes) -> list[str]:
    return [f"{k}: {old} -> {new}" for k, (old, new) in changes.items()]


def shard_digests(config: TrainJob) -> dict[str, str]:
    """Digest of each source's shard set, from its index."""
    digests = {path: ShardSet(path).digest for path in {source.path for source in config.data.sources.values()}}
    return {name: digests[source.path] for name, source in config.data.sources.items()}


def continued(
    streams: dict[int, StreamState], changes: Changes, config: TrainJob
) -> tuple[dict[int, StreamState], list[str]]:
    """The streams' states as far as they hold after `changes` (data.allow_change), and lines that report what was
    given up.

    With another seed or number of streams all documents are dealt anew, and no position holds. Otherwise a source keeps
    its positions unless its shards or the documents made of them changed, and every stream resumes at the beginning of
    its current window.
    """
    # these two matter only through the number of streams
    order = {k for k in changes if _under(k, ORDER)} - {"data.global_batch", "data.streams"}
    now = config.data.streams or config.data.global_batch
    before = (
        changes.get("data.streams", (config.data.streams,))[0]
        or changes.get("data.global_batch", (config.data.global_batch,))[0]
    )
    if "seed" in order or before != now:
        return {}, [
            f"data: with another seed or number of streams ({before} -> {now}) no position holds: it begins from the "
            "start"
        ]
    if ORDER_KEY in order:
        return {}, ["data: positions of an older version's order do not hold: it begins from the start"]
    if not order:
        return streams, []
    moved = {
        k.split(".")[2]
        for k in order
        if _under(k, ("data.sources",)) and k.split(".")[3:] not in [[key] for key in SAME_POSITIONS]
    }
    kept = [name for name in config.data.sources if name not in moved]
    lines = [f"data: {name} begins from the start" for name in sorted(moved & set(config.data.sources))]
    lines.append(
        f"data: {', '.join(kept) or 'nothing else'} goes on; up to data.window={config.data.window} sequences of "
        "every stream are packed again"
    )
    return {s: _restarted(state, kept) for s, state in streams.items()}, lines


def _restarted(state: StreamState, kept: list[str]) -> StreamState:
    """The stream at the beginning of its window, with the positions of the sources `kept`; shares are counted anew."""
    positions = {name: p for name, p in state["mixture"]["positions"].items() if name in kept}
    carry = [name for name in state["carry"] if name["source"] in kept]
    return {
        "window": state["window"],
        "emitted": 0,
        "mixture": {"drawn": {}, "tokens": {}, "positions": positions},
        "carry": carry,
    }


def _under(key: str, prefixes: tuple[str, ...]) -> bool:
    return any(key == p or key.startswith(p + ".") for p in prefixes)


def planned_steps(config: TrainJob) -> int:
    """train.steps, or as many steps as train.tokens need (rounded up)."""
    if config.train.steps is not None:
        return config.train.steps
    assert config.train.tokens is not None  # check_train
    return -(-config.train.tokens // (config.data.global_batch * config.data.seq_len))


def is_complete(config: TrainJob) -> bool:
    """Whether the run's newest checkpoint is of the last planned step, of this very config, and intact by its
    hashes."""
    newest, own = find_checkpoint(config), committed(config.run.dir)
    if newest is None or not own or newest.resolve() != own[-1].resolve():  # own: a branch has none at first
        return False
    changes = changes_since(newest, config, shard_digests(config))
    return step_of(newest) >= planned_steps(config) and not changes and not problems(newest, hashes=True)


def check_inputs(config: TrainJob) -> None:
    """Checks that need no torch, made before any rank is started: shard sets, VQ files, the checkpoint to resume from.
    Raises UserError."""
    checked: set[str] = set()
    for group, sources in (("sources", config.data.sources), ("heldout", config.data.heldout)):
        for name, source in sources.items():
            if source.path in checked:
                continue
            checked.add(source.path)
            try:
                ShardSet(source.path).check_files()
            except UserError as error:
                raise UserError(f"data.{group}.{name}.path={source.path}: {error}") from error
    tokenizer_files(config.vq)
    found = find_checkpoint(config)
    if found:
        changes_since(found, config, shard_digests(config))
