"""`liquid tokenize`: the offline VQ pass, from a source of images or texts to a shard set.

    source -> plan: rows of every input, batch size -> shards of tokenize.shard_size rows -> parts -> encoder -> tars ->
    index.json

Row n of the source always lies in shard n // shard_size, and a batch never crosses a shard: so a set's bytes depend
neither on the number of parts and processes nor on how often the job was killed and started again.
"""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from data_prep.encode.crops import Crop, make_crop
from data_prep.settings import TokenizeJob, TokenizeSettings
from data_prep.shard_set.folder import SetFolder
from data_prep.shard_set.maker import SetMaker
from data_prep.shard_set.plan import Plan, flatten, parse_part
from data_prep.shard_set.writer import CHUNK_SAMPLES
from data_prep.sources import Source, open_source
from liquid_train.config.compose import package_path
from liquid_train.errors import UserError
from liquid_train.files import check_folder, concerns, sha256_of
from liquid_train.image_tokenizer.settings import VQSettings

if TYPE_CHECKING:  # torch is imported only where something is left to encode
    from data_prep.encode.encoder import BatchEncoder

log = logging.getLogger(__name__)

# of what this program writes; part of the recipe: raise it when the same settings give other samples than before
FORMAT = 2


@dataclass(frozen=True)
class Encoding:
    """How the images of a set are encoded. `identity` is what codes can depend on besides the recipe."""

    encoder: BatchEncoder
    crop: Crop
    workers: int

    @property
    def identity(self) -> dict[str, Any]:
        import torch

        settings = self.encoder.settings
        return {
            "device": settings.device.partition(":")[0],
            "batch_size": settings.batch_size,
            "compile": settings.compile,
            "torch": torch.__version__,
        }


def run(config: TokenizeJob) -> None:
    """Make the shard set that `config` describes, or this process's part of the rest; returns at once where it is
    complete.

    Raises UserError for settings that cannot work, for an output folder that holds another set, and past
    tokenize.max_bad.
    """
    t = config.tokenize
    part = parse_part(t.part)
    source = open_source(t, config.seed)
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", t.device):
        raise UserError(f"tokenize.device={t.device}: one of auto, cpu, cuda, cuda:N")
    crop = open_crop(t, config.vq) if source.has_images else None
    recipe = make_recipe(config, source, crop)
    folder = SetFolder(Path(t.output))
    encoding: Encoding | None = None
    different = differences(folder.recipe, recipe)
    if different and folder.recipe and all(line.startswith("vq.") for line in different) and crop:
        encoding = open_encoding(config, crop)  # other files, but perhaps the same model in another format
        if encoding.encoder.model.fingerprint == folder.recipe["vq"]["fingerprint"]:
            different, recipe = [], folder.recipe
    _refuse(t, different)
    if not different and folder.is_complete():
        assert folder.index is not None
        print(
            f"{t.output}: complete already, {folder.index['totals']['samples']:,} samples of the same recipe; "
            "nothing to do"
        )
        return
    check_folder(Path(t.output), f"tokenize.output={t.output}")
    if crop:
        encoding = encoding or open_encoding(config, crop)
        recipe["vq"]["fingerprint"] = encoding.encoder.model.fingerprint
    try:
        with folder.opened():
            with folder.planning():
                _refuse(t, differences(folder.recipe, recipe))
                encoding, plan = settle_plan(t, source, folder, encoding, recipe)
                folder.begin(plan)
            SetMaker(t, source, folder, plan, part, encoding).make()
    except OSError as error:  # a full disk, above all
        key = f"tokenize.output={t.output}" if concerns(error, folder.path) else f"tokenize.input={t.input}"
        raise UserError(f"{key}: {error}; finished shards are kept, the same command goes on from there") from error


def open_crop(t: TokenizeSettings, vq: VQSettings) -> Crop:
    """The crop for this VQ, told without torch. Raises UserError where a file of the VQ is missing or a size does not
    fit it."""
    config = package_path(vq.config)
    for key, path in (("config", config), ("checkpoint", package_path(vq.checkpoint))):
        if not path.is_file():
            raise UserError(
                f"vq.{key}={getattr(vq, key)}: no such file; give the VQGAN's "
                f"{'yaml' if key == 'config' else '.ckpt or .safetensors'}"
            )
    try:
        ddconfig = yaml.safe_load(config.read_text())["model"]["params"]["ddconfig"]
        downsampling, resolution = 2 ** (len(ddconfig["ch_mult"]) - 1), int(ddconfig["resolution"])
    except (KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        raise UserError(
            f"vq.config={vq.config}: not a VQGAN yaml (needs model.params.ddconfig with ch_mult and resolution): "
            f"{error}"
        ) from error
    return make_crop(t.crop, t.size, t.sizes, t.max_aspect, downsampling=downsampling, resolution=resolution)


def make_recipe(config: TokenizeJob, source: Source, crop: Crop | None) -> dict[str, Any]:
    """Everything that determines a set's content but the VQ's fingerprint, which is not known without torch."""
    t = config.tokenize
    recipe = {
        "format": FORMAT,
        "source": {"name": t.source, **source.recipe()},
        "shard_size": t.shard_size,
        "chunk_samples": CHUNK_SAMPLES,
    }
    if crop is None:
        return {**recipe, "max_characters": t.max_characters}
    files = {key: sha256_of(package_path(getattr(config.vq, key))) for key in ("config", "checkpoint")}
    return {**recipe, "vq": files, "crop": crop.recipe(), "precision": t.precision}


def differences(old: dict[str, Any] | None, new: dict[str, Any]) -> list[str]:
    """What a folder's recipe has otherwise, as lines "key: OLD there, NEW asked for"; empty where there is nothing
    yet."""
    if old is None:
        return []
    if not old:
        return ["its shards have no recipe"]
    a, b = flatten(old), flatten(new)
    unknown = {"vq.fingerprint"} if "vq.fingerprint" not in b else set()
    keys = sorted((a.keys() | b.keys()) - unknown, key=lambda key: (key != "source.name", key))
    keys = [key for key in keys if a.get(key) != b.get(key)]
    lines = [f"{key}: {_short(a.get(key))} there, {_short(b.get(key))} asked for" for key in keys[:4]]
    return [*lines, f"and {len(keys) - 4} more"] if len(keys) > 4 else lines


def _refuse(t: TokenizeSettings, different: list[str]) -> None:
    if different and not t.overwrite:
        raise UserError(
            f"tokenize.output={t.output} holds another set: {'; '.join(different)}; "
            "give another tokenize.output, or tokenize.overwrite=true to replace it"
        )


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 24 else text[:12] + "..."  # a digest


def settle_plan(
    t: TokenizeSettings, source: Source, folder: SetFolder, encoding: Encoding | None, recipe: dict[str, Any]
) -> tuple[Encoding | None, Plan]:
    """The plan that lies in the folder, or a new one; and the encoding with the plan's batch size.

    Raises UserError where another machine's choices cannot be followed, and for a source without rows.
    """
    if folder.plan and folder.plan.recipe == recipe:
        plan = replace(folder.plan, max_bad=t.max_bad)
        if encoding is None or plan.encoder is None:
            return encoding, plan
        if t.batch_size == "auto":
            encoding = _with_batch(encoding, int(plan.encoder["batch_size"]))
        if encoding.identity == plan.encoder:
            return encoding, plan
        if not t.overwrite:
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

        encoding = _with_batch(encoding, fastest_batch(encoding.encoder, encoding.crop.size, encoding.crop.size))
        log.info("%s: batches of %d, the fastest here", t.output, encoding.encoder.settings.batch_size)
    inputs = [[name, source.count(name)] for name in source.inputs()]
    plan = Plan(recipe, inputs, None, dict(source.omitted()), max_bad=t.max_bad)
    if encoding:
        model = encoding.encoder.model
        of_vq: dict[str, Any] = {
            "vq_fingerprint": model.fingerprint,
            "codebook_size": model.codebook_size,
            "downsampling": model.downsampling,
        }
        plan = replace(plan, encoder=encoding.identity, **of_vq)
    if not plan.rows:
        raise UserError(
            f"tokenize.input={t.input}: no rows in it; tokenize.source={t.source} found nothing to tokenize"
        )
    return encoding, plan


def _with_batch(encoding: Encoding, batch_size: int) -> Encoding:
    encoding.encoder.settings = replace(encoding.encoder.settings, batch_size=batch_size)
    return encoding


def open_encoding(config: TokenizeJob, crop: Crop) -> Encoding:
    """Load the VQ and settle where it runs. Raises UserError when its files do not fit or the device is not there."""
    import torch

    from data_prep.encode.encoder import BatchEncoder, EncoderSettings

    t = config.tokenize
    device = t.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"  # torchrun: one rank a GPU
    if device != "cpu" and int(device.partition(":")[2]) >= torch.cuda.device_count():
        raise UserError(
            f"tokenize.device={t.device}: this machine has {torch.cuda.device_count()} CUDA devices; give auto or cpu"
        )
    if t.compile and device == "cpu":
        raise UserError("tokenize.compile=true: compiling gains nothing on a CPU; leave it out")
    batch_size = 1 if t.batch_size == "auto" else int(t.batch_size)
    settings = EncoderSettings(
        package_path(config.vq.config), package_path(config.vq.checkpoint), device, t.precision, t.compile, batch_size
    )
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # ranks that share this machine
    workers = max(1, _cores() // beside) if t.workers is None else t.workers
    return Encoding(BatchEncoder(settings), crop, workers)


def _cores() -> int:
    """Cores this process may use (macOS cannot tell them from the machine's)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
