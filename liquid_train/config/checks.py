"""Checks across keys that need neither data nor devices: one message with the key, the value and what would be
right."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_prep.settings import TokenizeJob
from evals.settings import BENCHMARKS, METRICS, SHEETS, EvalJob
from liquid_train.config.schema import PlanJob, TrainJob
from liquid_train.data.tasks import task_names
from liquid_train.distributed.settings import ParallelConfig
from liquid_train.errors import UserError
from liquid_train.generate.request import check_task
from liquid_train.generate.settings import GenerateJob
from liquid_train.measurement.settings import VQAScoreConfig, template_fields
from liquid_train.model.settings import BackboneConfig
from liquid_train.serve.settings import ServeJob
from liquid_train.training.settings import PERIODIC


def require(condition: bool, message: str) -> None:
    """Raise UserError(message) unless condition holds."""
    if not condition:
        raise UserError(message)


def check_train(c: TrainJob) -> None:
    """Checks across keys that need neither data nor devices."""
    require(bool(c.data.sources), "data.sources is empty; choose a mixture with data=NAME or experiment=quickstart")
    require(
        c.train.steps is not None or c.train.tokens is not None,
        "train.steps has no value; give train.steps=N or train.tokens=N",
    )
    for key in (
        "train.steps",
        "train.tokens",
        "train.micro_batch",
        "data.seq_len",
        "data.global_batch",
        "data.streams",
        "data.window",
        "checkpoint.every",
        "checkpoint.keep",
        "tracker.every",
        "loss.chunk",
    ):
        value = get(c, key)
        require(value is None or value > 0, f"{key}={value}: must be 1 or more")
    require(c.data.workers >= 0, f"data.workers={c.data.workers}: must be 0 or more")
    require(c.checkpoint.shard_gib > 0, f"checkpoint.shard_gib={c.checkpoint.shard_gib}: must be above 0")
    require(c.optimizer.lr > 0, f"optimizer.lr={c.optimizer.lr}: must be positive")
    for group, sources in (("sources", c.data.sources), ("heldout", c.data.heldout)):
        for name, source in sources.items():
            key = f"data.{group}.{name}"
            require(source.weight >= 0, f"{key}.weight={source.weight}: must be 0 or more")
            require(
                source.max_epochs is None or source.max_epochs > 0,
                f"{key}.max_epochs={source.max_epochs}: must be above 0, or null for no end",
            )
            require(
                source.questions_per_document > 0,
                f"{key}.questions_per_document={source.questions_per_document}: must be 1 or more",
            )
    require(
        sum(s.weight for s in c.data.sources.values()) > 0,
        "data.sources: every weight is 0; give one of them a positive weight",
    )
    require(c.data.cache_gib > 0, f"data.cache_gib={c.data.cache_gib}: must be above 0; data.cache=null for no cache")
    one_of(c, "data.weight_unit", ("documents", "tokens"))
    for skipped in c.data.skip:
        named = "/" in skipped and skipped.split("/")[0] in c.data.sources
        require(named, f"data.skip: {skipped}: not SOURCE/KEY with a source of {', '.join(c.data.sources)}")
    tasks = task_names(c.data)
    for task in c.loss.weight:
        require(task in tasks, f"loss.weight.{task}: no such task; one of {', '.join(tasks)}")
    check_safety(c)
    check_parallel(c)
    check_periods(c)
    require(
        c.optimizer.image_embedding_lr_scale >= 0,
        f"optimizer.image_embedding_lr_scale={c.optimizer.image_embedding_lr_scale}: must be 0 or more",
    )
    require(
        c.optimizer.new_rows_steps >= 0, f"optimizer.new_rows_steps={c.optimizer.new_rows_steps}: must be 0 or more"
    )
    for key in ("schedule.warmup", "schedule.decay"):
        require(get(c, key) >= 0, f"{key}={get(c, key)}: a share of the steps below 1, or a number of steps from 1 on")
    one_of(c, "loss.normalize", ("token", "document", "sqrt"))
    one_of(c, "schedule.kind", ("cosine", "constant", "wsd"))
    one_of(c, "tracker.wandb.mode", ("online", "offline", "disabled"))
    require(0 <= c.data.max_bad <= 1, f"data.max_bad={c.data.max_bad}: a share between 0 and 1")
    require(0 <= c.data.unconditional <= 1, f"data.unconditional={c.data.unconditional}: a share between 0 and 1")
    require(
        c.backbone.init == "random" or c.backbone.path is not None,
        "backbone.init=pretrained needs backbone.path=FOLDER with an HF model",
    )
    check_backbone(c)


def check_safety(c: TrainJob) -> None:
    spike, hang, steps = c.train.spike, c.train.hang_timeout, c.train.profile_steps
    one_of(c, "train.spike.action", ("warn", "skip", "rewind"))
    require(spike.threshold > 0, f"train.spike.threshold={spike.threshold}: must be above 0")
    require(spike.window >= 4, f"train.spike.window={spike.window}: must be 4 or more")
    require(spike.rewinds > 0, f"train.spike.rewinds={spike.rewinds}: must be 1 or more")
    require(hang is None or hang > 0, f"train.hang_timeout={hang}: seconds above 0, or null for never")
    right = steps is None or (len(steps) == 2 and 1 <= steps[0] <= steps[1])
    require(right, f"train.profile_steps={steps}: give the first and the last step to profile, such as [10,12]")


def check_periods(c: TrainJob) -> None:
    """Evaluations come every evals.every steps; what is rarer, and checkpoints that are compared, come at some of
    these."""
    every, best = c.evals.every, c.checkpoint.best
    require(every >= 0, f"evals.every={every}: must be 1 or more, or 0 for no evaluation")
    for name, period in c.evals.periods.items():
        require(name in PERIODIC, f"evals.periods.{name}: no such metric; one of {', '.join(PERIODIC)}")
        fits = period > 0 and every > 0 and period % every == 0
        require(
            fits, f"evals.periods.{name}={period}: must be a multiple of evals.every={every}, when evaluations are made"
        )
    check_vqascore(c.evals.vqascore, "evals.vqascore")
    require(
        c.evals.language.batch_size > 0,
        f"evals.language.batch_size={c.evals.language.batch_size}: must be 1 or more",
    )
    limit = c.evals.language.limit
    require(limit is None or limit > 0, f"evals.language.limit={limit}: must be 1 or more, or null for all")
    one_of(c, "checkpoint.best_is", ("highest", "lowest"))
    if best is not None:
        require(
            best.startswith(("eval/", "val/")),
            f"checkpoint.best={best}: give a number of metrics.jsonl, such as eval/vqa_accuracy or val/loss/t2i",
        )
        measured = every > 0 and c.checkpoint.every % every == 0
        require(
            measured,
            f"checkpoint.best={best} needs checkpoint.every={c.checkpoint.every} to be a multiple of "
            f"evals.every={every}, when it is "
            "measured",
        )


def check_parallel(c: TrainJob) -> None:
    one_of(c, "parallel.precision", ("bf16", "fp32"))
    one_of(c, "parallel.attention", ("auto", "flash", "varlen", "flex", "rectangles"))
    one_of(c, "parallel.activation_checkpoint", ("none", "selective", "full"))
    for key in ("parallel.replicate", "parallel.tensor"):
        require(get(c, key) > 0, f"{key}={get(c, key)}: must be 1 or more")
    require(
        c.parallel.shard > 0 or c.parallel.shard == -1,
        f"parallel.shard={c.parallel.shard}: must be 1 or more, or -1 for all remaining ranks",
    )
    nproc = c.launch.nproc
    require(
        nproc == "auto" or (nproc.isdigit() and int(nproc) > 0), f"launch.nproc={nproc}: a number of processes, or auto"
    )


def check_plan(c: PlanJob) -> None:
    one_of(c, "format", ("table", "json"))
    check_parallel(c)
    check_backbone(c)


def check_backbone(c: TrainJob) -> None:
    one_of(c, "backbone.init", ("random", "pretrained"))
    one_of(c, "backbone.image_init", ("mean", "normal", "codebook"))
    b = c.backbone
    require(
        b.image_init == "mean" or b.init == "pretrained",
        f"backbone.image_init={b.image_init} needs backbone.init=pretrained and backbone.path=FOLDER: with "
        f"init={b.init} every row is random",
    )
    tokenizer = c.backbone.tokenizer
    found = tokenizer is None or (Path(tokenizer) / "tokenizer.json").is_file()
    require(found, f"backbone.tokenizer={tokenizer}: no tokenizer.json there; give a folder in Hugging Face format")
    check_backbone_folder(c.backbone)


def degrees(p: ParallelConfig, ranks: int) -> tuple[int, int, int]:
    """(replicate, shard, tensor) whose product is the number of ranks; UserError when there is none."""
    shard = p.shard if p.shard > 0 else ranks // max(1, p.replicate * p.tensor)
    if min(p.replicate, p.tensor, shard) < 1 or p.replicate * shard * p.tensor != ranks:
        found = f"parallel.replicate={p.replicate} x parallel.shard={p.shard} x parallel.tensor={p.tensor}"
        raise UserError(
            f"{found}: do not multiply to the {ranks} ranks (launch.nproc x machines); set parallel.shard=-1, and "
            f"degrees that divide {ranks}"
        )
    return p.replicate, shard, p.tensor


def check_backbone_folder(backbone: BackboneConfig) -> None:
    if backbone.path is None:
        require(
            "model_type" in backbone.architecture,
            "backbone.architecture.model_type has no value; choose backbone=tiny or give backbone.path=FOLDER",
        )
        return
    folder = Path(backbone.path)
    require(
        (folder / "config.json").is_file(),
        f"backbone.path={backbone.path}: no config.json there; give a folder in Hugging Face format",
    )


def check_tokenize(c: TokenizeJob) -> None:
    t = c.tokenize
    for key in ("copies", "size", "shard_size", "max_characters"):
        value = getattr(t, key)
        require(value is None or value > 0, f"tokenize.{key}={value}: must be 1 or more")
    number = t.batch_size.isdigit() and int(t.batch_size) > 0
    require(
        t.batch_size == "auto" or number,
        f"tokenize.batch_size={t.batch_size}: must be 1 or more, or auto for the fastest",
    )
    one_of(c, "tokenize.crop", ("none", "center", "multiratio"))
    one_of(c, "tokenize.precision", ("bf16", "fp32"))
    require(
        t.max_aspect is None or t.max_aspect >= 1,
        f"tokenize.max_aspect={t.max_aspect}: long side / short side, 1 or more, or null for no limit",
    )
    require(
        t.crop == "multiratio" or not t.sizes,
        f"tokenize.sizes: only tokenize.crop=multiratio has a list of sizes, not {t.crop}",
    )
    require(
        t.crop != "none" or t.size is None,
        f"tokenize.size={t.size}: tokenize.crop=none takes images as they are; use center or multiratio",
    )
    require(0 <= t.max_bad <= 1, f"tokenize.max_bad={t.max_bad}: a share between 0 and 1")
    require(t.workers is None or t.workers >= 0, f"tokenize.workers={t.workers}: must be 0 or more")


def check_generate(c: GenerateJob) -> None:
    check_task(c)
    require(
        c.size is None or re.fullmatch(r"[1-9]\d*x[1-9]\d*", c.size) is not None,
        f"size={c.size}: give WIDTHxHEIGHT in pixels, for example 512x512",
    )
    one_of(c, "precision", ("bf16", "fp32", "int8"))
    require(c.temperature >= 0, f"temperature={c.temperature}: must be 0 (greedy) or more")
    require(0 < c.top_p <= 1, f"top_p={c.top_p}: a share above 0 and up to 1")
    require(c.top_k is None or c.top_k > 0, f"top_k={c.top_k}: must be 1 or more, or null for all")
    require(c.batch_size > 0, f"batch_size={c.batch_size}: must be 1 or more")


def check_serve(c: ServeJob) -> None:
    one_of(c, "precision", ("bf16", "fp32", "int8"))
    require(
        bool(c.host.strip()),
        "host is empty; give 127.0.0.1 for this machine alone, or 0.0.0.0 for every network it is in",
    )
    require(0 <= c.port < 2**16, f"port={c.port}: between 0 (any free one) and 65535")
    for key, value in vars(c.limits).items():
        least = 0 if key == "waiting" else 1
        require(value >= least, f"limits.{key}={value}: must be {least} or more")


def check_eval(c: EvalJob) -> None:
    require(c.images_per_prompt >= 0, f"images_per_prompt={c.images_per_prompt}: must be 0 or more")
    require(bool(c.metrics), f"metrics is empty; give one or more of {', '.join(METRICS)}")
    for name in c.metrics:
        require(name in METRICS, f"metrics: {name}: no such metric; one of {', '.join(METRICS)}")
    rows = c.heldout.batches
    require(rows is None or rows > 0, f"heldout.batches={rows}: must be 1 or more, or null for all")
    check_files_to_score(c)
    if c.sheet is None:
        check_given(c)
    else:  # it lists what was not given
        one_of(c, "sheet", tuple(SHEETS))
        others = [name for name in c.metrics if name not in SHEETS[c.sheet]]
        require(
            not others,
            f"metrics: {', '.join(others)} have no place on evals={c.sheet}; it shows {', '.join(SHEETS[c.sheet])}",
        )
    check_judges(c)
    b = c.benchmarks
    require(0 <= b.max_bad < 1, f"benchmarks.max_bad={b.max_bad}: a share from 0 to below 1")
    require(
        b.max_questions is None or b.max_questions > 0,
        f"benchmarks.max_questions={b.max_questions}: must be 1 or more, or null for all",
    )
    require(
        c.language.limit is None or c.language.limit > 0,
        f"language.limit={c.language.limit}: must be 1 or more, or null for all",
    )
    for key in (
        "batch_size",
        "caption_images",
        "clipscore.batch_size",
        "benchmarks.max_new_tokens",
        "language.batch_size",
    ):
        require(get(c, key) > 0, f"{key}={get(c, key)}: must be 1 or more")
    require(c.tokenizer_images >= 2, f"tokenizer_images={c.tokenizer_images}: must be 2 or more")
    one_of(c, "features.kind", ("vq", "inception", "hf"))
    one_of(c, "features.resize", ("clean", "legacy_pytorch", "legacy_tensorflow"))
    check_vqascore(c.vqascore, "vqascore")
    judges = [name for name in ("vqascore", "genai_bench_vqascore") if name in c.metrics]
    require(
        c.vqascore.pattern is None or not judges,
        f"vqascore.pattern: {', '.join(judges)} asks about whole texts only; leave one of them out",
    )


def check_vqascore(c: VQAScoreConfig, key: str) -> None:
    """The templates fit the pattern, and every text can be asked about."""
    require("{text}" in c.question, f"{key}.question={c.question}: must hold {{text}} where the text goes")
    require(c.batch_size > 0, f"{key}.batch_size={c.batch_size}: must be 1 or more")
    require(
        (c.pattern is None) == (not c.parts),
        f"{key}.pattern={c.pattern} and {len(c.parts)} {key}.parts: give both, or neither",
    )
    try:
        groups = set(re.compile(c.pattern or "").groupindex)
    except re.error as error:
        raise UserError(f"{key}.pattern={c.pattern}: not a regular expression: {error}") from error
    for n, part in enumerate(c.parts):
        for name in ("question", "answer"):
            here, template = f"{key}.parts[{n}].{name}", getattr(part, name)
            require(bool(template.strip()), f"{here} is empty")
            try:
                unknown = template_fields(template) - groups
            except ValueError as error:
                raise UserError(f"{here}={template}: {error}") from error
            require(
                not unknown,
                f"{here}={template}: {', '.join(sorted(unknown))}: no group of {key}.pattern, which has "
                f"{', '.join(sorted(groups)) or 'none'}",
            )
        require(
            bool(template_fields(part.question) | template_fields(part.answer)),
            f"{key}.parts[{n}]: names no group of {key}.pattern, so it fits no text",
        )


def check_given(c: EvalJob) -> None:
    """What the chosen metrics cannot be measured without."""
    require(
        c.genai_bench is not None or "genai_bench" not in c.metrics,
        "metrics: genai_bench needs genai_bench=FOLDER with GenAI-Bench's files",
    )
    require(
        c.genai_bench is not None or "genai_bench_vqascore" not in c.metrics,
        "metrics: genai_bench_vqascore needs genai_bench=FOLDER",
    )
    require(
        bool(c.language.tasks) or "language" not in c.metrics,
        "metrics: language needs language.tasks=[...], such as [hellaswag,arc_easy]",
    )
    require(
        c.features.kind == "vq" or c.features.path is not None,
        f"features.kind={c.features.kind} needs features.path=PATH",
    )


def check_files_to_score(c: EvalJob) -> None:
    """What is in files already is scored without a model, everything else with one."""
    keys = {
        name: f"benchmarks.{name}.predictions"
        for name in BENCHMARKS
        if getattr(c.benchmarks, name).predictions is not None
    }
    keys |= {"wise": "wise.scores"} if c.wise.scores else {}
    given = [keys[name] for name in c.metrics if name in keys]
    require(c.watch_seconds > 0, f"watch_seconds={c.watch_seconds}: must be above 0")
    if c.watch is not None:
        for key in ("checkpoint", "output", "sheet"):
            require(
                get(c, key) is None,
                f"watch={c.watch} goes without {key}={get(c, key)}: every checkpoint is evaluated into "
                "the run's evals/",
            )
    if c.checkpoint is not None or c.watch is not None:
        model = f"checkpoint={c.checkpoint}" if c.checkpoint is not None else f"watch={c.watch}"
        require(not given, f"{', '.join(given)}: files are scored without a model; leave out these, or {model}")
        return
    require(bool(given), "checkpoint has no value; give checkpoint=...")
    others = [name for name in c.metrics if name not in keys]
    require(
        not others,
        f"checkpoint has no value, and metrics={','.join(others)} need one; leave them out to score {', '.join(given)}",
    )
    require(c.output is not None, f"output has no value, and {', '.join(given)} belong to no run; give output=DIR")


def check_judges(c: EvalJob) -> None:
    """Models and folders that single metrics need, and those that were given."""
    for metrics, key, what in (
        (
            ("vqascore", "genai_bench_vqascore"),
            "vqascore.model",
            "a visual question answering model in Hugging Face format",
        ),
        (("clipscore",), "clipscore.model", "a CLIP model in Hugging Face format"),
        (("reference_quality",), "reference.folder", "real images, as MJHQ-30K's"),
        (("wise",), "wise.prompts", "WISE's three JSON files"),
    ):
        path, asked = get(c, key), [name for name in metrics if name in c.metrics]
        require(
            path is not None or not asked or c.sheet is not None,
            f"metrics: {', '.join(asked)} needs {key}=FOLDER with {what}",
        )
        require(path is None or Path(path).is_dir(), f"{key}={path}: no such folder; give that of {what}")
        model = key.endswith(".model") and path is not None
        require(
            not model or (Path(str(path)) / "config.json").is_file(),
            f"{key}={path}: no config.json there; give the folder of {what}",
        )
    for key in ("reference.max_bad", "wise.max_bad"):
        require(0 <= get(c, key) < 1, f"{key}={get(c, key)}: a share from 0 to below 1")
    least = c.reference.per_category
    require(least is None or least > 0, f"reference.per_category={least}: must be 1 or more, or null for all")


def get(config: Any, key: str) -> Any:
    """The value of a dotted key of nested dataclasses."""
    for part in key.split("."):
        config = getattr(config, part)
    return config


def one_of(config: Any, key: str, allowed: tuple[str, ...]) -> None:
    value = get(config, key)
    require(value in allowed, f"{key}={value}: one of {', '.join(allowed)}")


CHECKS: dict[str, Callable[[Any], None]] = {
    "train": check_train,
    "plan": check_plan,
    "tokenize": check_tokenize,
    "generate": check_generate,
    "serve": check_serve,
    "eval": check_eval,
}
