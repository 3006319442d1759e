"""`liquid tokenize`: the offline VQ pass, from a source of images or texts to a shard set.

    source -> plan: rows of every input, batch size -> shards of tokenize.shard_size rows -> parts -> encoder -> tars ->
    index.json

Row n of the source always goes into shard n // shard_size, and a batch never crosses a shard. A set's bytes therefore
depend neither on the number of parts and processes nor on how often the job was killed and restarted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from data_prep.encode.crops import Crop
from data_prep.encode.encoding import Encoding, check_device, open_crop, open_encoding, processes
from data_prep.encode.hashes import HASHES
from data_prep.overlap import check_apart
from data_prep.settings import TokenizeJob, TokenizeSettings
from data_prep.shard_set.again import OUT_OF_REACH, shards_to_make_again
from data_prep.shard_set.folder import SetFolder
from data_prep.shard_set.index import counted
from data_prep.shard_set.maker import SetMaker
from data_prep.shard_set.plan import SetPlan, flat_keys, parse_part
from data_prep.shard_set.surveyor import Surveyor
from data_prep.shard_set.writer import shard_number
from data_prep.source import Source, Survey
from data_prep.sources import open_source
from liquid_train.errors import UserError
from liquid_train.files import sha256_of
from liquid_train.image_tokenizer.opening import kind_record, tokenizer_files

log = logging.getLogger(__name__)

# Version of what this program writes, part of the recipe: raise it when the same settings give other samples
FORMAT = 2
SHOWN_BROKEN = 5  # files that break off and are named


def run(config: TokenizeJob) -> None:
    """Make the shard set that `config` describes, or this process's part of the rest; returns at once where it is
    complete.

    Raises UserError for settings that cannot work, for an output folder that holds another set, and past
    tokenize.max_bad.
    """
    t = config.tokenize
    part = parse_part(t.part)
    source = open_source(t, config.seed)
    check_apart(t, source)
    check_device(t.device)
    crop = open_crop(t, config.vq) if source.has_images else None
    recipe = make_recipe(config, source, crop)
    folder = SetFolder(t.output)
    if folder.recipe and "hashes" not in folder.recipe and not t.overwrite:
        recipe.pop("hashes", None)  # a set of before there were hashes stays as it is
    crop = crop and replace(crop, hashes="hashes" in recipe)
    encoding: Encoding | None = None
    if crop and not tokenizer_files(config.vq):  # no file tells such a tokenizer from another: its fingerprint does
        encoding = open_encoding(config, crop)
        recipe["vq"]["fingerprint"] = encoding.encoder.model.fingerprint
    different = recipe_differences(folder.recipe, recipe)
    if different and folder.recipe and all(line.startswith("vq.") for line in different) and crop:
        encoding = encoding or open_encoding(config, crop)  # other files, but perhaps the same model in another format
        if encoding.encoder.model.fingerprint == folder.recipe["vq"]["fingerprint"]:
            different, recipe = [], folder.recipe
    _refuse_other_set(t, folder, different)
    again = frozenset[int]()
    if not different and folder.is_complete():
        again = _again(t, source, folder, crop)
        if not again:
            return
    folder.place.check(f"tokenize.output={t.output}")
    if crop:
        encoding = encoding or open_encoding(config, crop)
        recipe["vq"]["fingerprint"] = encoding.encoder.model.fingerprint
    try:
        with folder.opened():
            surveyor = Surveyor(t, config.seed, source, recipe["source"], folder, part, processes(t))
            # by all parts at once, before one of them makes the plan
            if folder.plan is None or recipe_differences(folder.recipe, recipe):
                surveyor.survey()
            with folder.planning():
                _refuse_other_set(t, folder, recipe_differences(folder.recipe, recipe))
                encoding, plan = settle_plan(t, source, folder, encoding, recipe, surveyor.survey)
                folder.begin(plan, again)
            SetMaker(t, source, folder, plan, part, encoding).make()
    except OSError as error:  # a full disk, above all
        of_output = folder.concerns(error)
        if not of_output and not type(source).__module__.startswith("data_prep."):
            raise  # of a source of the user's own, which may have a bug
        key = f"tokenize.output={t.output}" if of_output else f"tokenize.input={t.input}"
        raise UserError(f"{key}: {error}; finished shards are kept, the same command goes on from there") from error


def _again(t: TokenizeSettings, source: Source, folder: SetFolder, crop: Crop | None) -> frozenset[int]:
    """Shards of a complete set that are to be made again; where there are none, a line says so."""
    index = folder.index
    assert index is not None and folder.plan is not None
    left_out = folder.dropped_rows()
    records = {
        shard_number(entry["url"]): {"entry": entry, "left_out": left_out.get(entry["url"], [])}
        for entry in index["shardlist"]
    }
    again = shards_to_make_again(t, source, folder.plan, crop, records, complete=True)
    if not again:
        print(f"{t.output}: complete already, {index['totals']['samples']:,} samples of the same recipe; nothing to do")
        away = {reason: n for reason, n in index["dropped"].items() if reason.startswith(OUT_OF_REACH)}
        if away and not t.retry_dropped:
            print(f"  dropped: {counted(away)}; tokenize.retry_dropped=true tries them again")
    return again


def make_recipe(config: TokenizeJob, source: Source, crop: Crop | None) -> dict[str, Any]:
    """Everything that determines a set's content but the fingerprint of its image tokenizer, which is not known without
    torch. Raises UserError where a file of the tokenizer is missing."""
    t = config.tokenize
    recipe = {
        "format": FORMAT,
        "source": {"name": t.source, **({"options": t.options} if t.options else {}), **source.recipe()},
        "shard_size": t.shard_size,
        "chunk_samples": 256,  # of the index of older versions, whose sets have the same recipe
        **({"hashes": HASHES} if t.hashes else {}),
    }
    if crop is None:
        return {**recipe, "max_characters": t.max_characters}
    files = {key: sha256_of(path) for key, path in tokenizer_files(config.vq).items()}
    return {**recipe, "vq": {**kind_record(config.vq), **files}, "crop": crop.recipe(), "precision": t.precision}


def recipe_differences(old: dict[str, Any] | None, new: dict[str, Any]) -> list[str]:
    """What a folder's recipe has otherwise, as lines "key: OLD there, NEW asked for"; empty where there is nothing
    yet. A recipe of an older version says nothing of when files were modified."""
    if old is None:
        return []
    if not old:
        return ["its shards have no recipe"]
    a, b = flat_keys(old), flat_keys(new)
    unknown = {"vq.fingerprint"} if "vq.fingerprint" not in b else set()
    unknown |= {key for key in b if key.rpartition(".")[2] == "modified" and key not in a}
    keys = sorted((a.keys() | b.keys()) - unknown, key=lambda key: (key != "source.name", key))
    keys = [key for key in keys if a.get(key) != b.get(key)]
    lines = [f"{key}: {_abridged(a.get(key))} there, {_abridged(b.get(key))} asked for" for key in keys[:4]]
    return [*lines, f"and {len(keys) - 4} more"] if len(keys) > 4 else lines


def _refuse_other_set(t: TokenizeSettings, folder: SetFolder, different: list[str]) -> None:
    """Raise UserError for a set that may not be replaced, and for files that no `liquid tokenize` wrote."""
    if not different:
        return
    if foreign := folder.foreign_files():
        raise UserError(
            f"tokenize.output={t.output} holds another set: {'; '.join(different)} ({', '.join(foreign[:3])}): not "
            "written by this program, and not replaced by it; give another tokenize.output, or move them away"
        )
    if not t.overwrite and folder.has_samples():
        raise UserError(
            f"tokenize.output={t.output} holds another set: {'; '.join(different)}; "
            "give another tokenize.output, or tokenize.overwrite=true to replace it"
        )


def _abridged(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 24 else text[:12] + "..."  # a digest


def _refuse_broken_files(t: TokenizeSettings, surveys: dict[str, Survey]) -> None:
    """Raise UserError, before anything is encoded, for inputs that break off, unless tokenize.allow_broken_files."""
    broken = [survey.damage for survey in surveys.values() if survey.damage]
    if broken and not t.allow_broken_files:
        more = f"; and {len(broken) - SHOWN_BROKEN:,} more" if len(broken) > SHOWN_BROKEN else ""
        raise UserError(
            f"tokenize.input={t.input}: {len(broken):,} of {len(surveys):,} files cannot be read to their end, and "
            f"how much is lost nobody knows: {'; '.join(broken[:SHOWN_BROKEN])}{more}; fetch them again, or use what "
            "they still have with tokenize.allow_broken_files=true"
        )


def settle_plan(
    t: TokenizeSettings,
    source: Source,
    folder: SetFolder,
    encoding: Encoding | None,
    recipe: dict[str, Any],
    survey: Callable[[], dict[str, Survey]],
) -> tuple[Encoding | None, SetPlan]:
    """The plan found in the folder, or a new one, and the encoding with the plan's batch size. survey: of every
    input, by name.

    Raises UserError where another machine's choices cannot be followed, and for a source without rows.
    """
    if folder.plan and not recipe_differences(folder.plan.recipe, recipe):
        plan = replace(folder.plan, max_bad=t.max_bad)
        if encoding is None or plan.encoder is None:
            return encoding, plan
        if t.batch_size == "auto":
            encoding = encoding.with_batch(int(plan.encoder["batch_size"]))
        if encoding.identity == plan.encoder:
            return encoding, plan
        if not t.overwrite and folder.has_samples():
            lines = [
                f"{key}: {plan.encoder.get(key)} there, {value} here"
                for key, value in encoding.identity.items()
                if plan.encoder.get(key) != value
            ]
            raise UserError(
                f"tokenize.output={t.output} was begun in another way ({'; '.join(lines)}), and codes could differ: "
                "go on in that way, or begin again with tokenize.overwrite=true"
            )
    if encoding and t.batch_size == "auto":
        from data_prep.encode.batch_size import fastest_batch

        encoding = encoding.with_batch(fastest_batch(encoding.encoder, encoding.crop.size, encoding.crop.size))
        log.info("%s: batches of %d, the fastest here", t.output, encoding.encoder.settings.batch_size)
    surveys = survey()
    _refuse_broken_files(t, surveys)
    omitted = sum((found.omitted for found in surveys.values()), source.omitted())
    inputs = [[name, found.rows] for name, found in surveys.items()]
    plan = SetPlan(recipe, inputs, None, dict(sorted(omitted.items())), max_bad=t.max_bad)
    if encoding:
        model = encoding.encoder.model
        of_vq: dict[str, Any] = {
            "vq_fingerprint": model.fingerprint,
            "codebook_size": model.codebook_size,
            "downsampling": model.downsampling,
        }
        plan = replace(plan, encoder=encoding.identity, **of_vq)
    if not plan.rows:
        left = f" (omitted: {counted(plan.omitted)})" if plan.omitted else ""
        raise UserError(
            f"tokenize.input={t.input}: no rows in it; tokenize.source={t.source} found nothing to tokenize{left}"
        )
    return encoding, plan
