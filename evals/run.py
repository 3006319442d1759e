"""`liquid eval`: all questions of a shard set and pictures of every caption, into evals/ of the run.

    evals/vqa.json   accuracy by answer type, blind baseline, shuffled pictures, twelve examples (examples/*.png)
    evals/t2i.json   right colours and shapes, distinct pictures, Frechet distance; drawn.png shows the pictures

The same call again with the results in place does nothing and imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from liquid_train.checkpoint import model_folder, step_of
from liquid_train.config import EvalJob
from liquid_train.data.shards import ShardSet
from liquid_train.files import sha256_of
from liquid_train.generate.job import progress_bar
from liquid_train.generate.manifest import aside, file_identity, is_current, model_identity, publish, text_digest

if TYPE_CHECKING:
    from liquid_train.generate.session import Session

Report = Callable[[str, int, int], None]
SETTINGS = ("seed", "images_per_prompt", "guidance", "temperature", "top_k", "max_images")


def run(config: EvalJob) -> None:
    """Evaluate a checkpoint. Raises ValueError for a user's mistake, before the model is loaded where that can be told."""
    folder = model_folder(config.checkpoint)
    output = output_folder(config, folder)
    if config.max_images is not None and config.max_images < 1:
        raise ValueError(f"max_images={config.max_images}: must be 1 or more, or null for all")
    sets = [ShardSet(path) for path in (config.shards, config.train_shards) if path is not None]
    for shards in sets:
        shards.check_files()
    inputs = inputs_of(config, folder)
    if is_current(output, inputs):
        print(f"{output}: evaluated with these settings already; nothing to do")
        print_tables(output)
        return
    from liquid_train.generate.session import open_model

    session = open_model(folder, config.device, vq=config.vq)
    with aside(output) as partial:
        evaluate(config, session, step_of(folder.parent) if in_run(folder) else None, partial)
        publish(partial, output, inputs)
    print_tables(output)
    print(f"written to {output}")


def in_run(folder: Path) -> bool:
    """Whether a model/ folder belongs to a checkpoint of a run."""
    return folder.name == "model" and folder.parent.parent.name == "checkpoints"


def output_folder(config: EvalJob, folder: Path) -> Path:
    if config.output is not None:
        return Path(config.output)
    if not in_run(folder):
        raise ValueError(f"output has no value, and checkpoint={config.checkpoint} belongs to no run; give output=DIR")
    return folder.parents[2] / "evals"


def inputs_of(config: EvalJob, folder: Path) -> dict[str, Any]:
    """Everything that decides the results: model, data, settings, and the code that measures."""
    code = [p for where in (Path(__file__).parent, Path(__file__).parents[1] / "liquid_train" / "generate") for p in sorted(where.glob("*.py"))]
    return {
        "model": model_identity(folder),
        "data": [ShardSet(path).digest for path in (config.shards, config.train_shards) if path is not None],
        "vq": [file_identity(Path(path)) if Path(path).is_file() else path for path in (config.vq.config, config.vq.checkpoint)],
        "code": text_digest("".join(sha256_of(p) for p in code)),
        **{key: getattr(config, key) for key in SETTINGS},
    }


def evaluate(config: EvalJob, session: Session, step: int | None, folder: Path) -> None:
    """Measure everything and write it into `folder`."""
    from evals import t2i, vqa
    from liquid_train.generate.pictures import contact_sheet, decode, save_png
    from liquid_train.generate.session import open_vq

    fingerprint, size = session.card.vq_fingerprint, session.card.codebook_size
    data = vqa.load_questions(ShardSet(config.shards, vq_fingerprint=fingerprint, codebook_size=size), config.max_images)
    train = ShardSet(config.train_shards, vq_fingerprint=fingerprint, codebook_size=size) if config.train_shards is not None else None
    tokenizer = open_vq(session, config.vq)
    with reports() as report:
        answers, examples = vqa.evaluate(session.model, session.vocabulary, data, train, seed=config.seed, batch_size=config.batch_size, progress=report)
        shown = decode(tokenizer, np.stack([data.codes[data.questions[n].image] for n in examples]))
        (folder / "examples").mkdir()
        for i, picture in enumerate(shown):
            save_png(folder / vqa.example_name(i), picture)
        write_json(folder / "vqa.json", {"step": step, **answers})
        if config.images_per_prompt:
            drawn, pixels = t2i.evaluate(
                session, tokenizer, data.codes, per_prompt=config.images_per_prompt, seed=config.seed, guidance=config.guidance,
                temperature=config.temperature, top_k=config.top_k, batch_size=config.batch_size, progress=report,
            )  # fmt: skip
            save_png(folder / "drawn.png", contact_sheet(list(pixels), columns=config.images_per_prompt))
            write_json(folder / "t2i.json", {"step": step, **drawn})


@contextmanager
def reports() -> Iterator[Report]:
    """A progress bar with one line for each kind of work."""
    with progress_bar() as bar:
        tasks: dict[str, Any] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done)

        yield report


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")


def print_tables(folder: Path, console: Console | None = None) -> None:
    """What vqa.json and, where there is one, t2i.json say."""
    console = console or Console()
    vqa = json.loads((folder / "vqa.json").read_text(encoding="utf-8"))
    table = Table("answers", "questions", "right", "blind", "shuffled pictures", title="Questions about unseen pictures", title_justify="left")
    rows = [("all", vqa, vqa.get("blind_accuracy"), vqa.get("shuffled_accuracy"))]
    for kind, own in vqa["by_type"].items():
        rows.append((kind, own, *(vqa[key][kind]["accuracy"] if key in vqa else None for key in ("blind_by_type", "shuffled_by_type"))))
    for kind, own, blind, shuffled in rows:
        table.add_row(kind, f"{own['count']:,}", *(percent(value) for value in (own["accuracy"], blind, shuffled)))
    console.print(table)
    if (folder / "t2i.json").is_file():
        t2i = json.loads((folder / "t2i.json").read_text(encoding="utf-8"))
        table = Table("", "drawn", "judge on real pictures", title=f"{t2i['count']} pictures drawn from {len(t2i['prompts'])} captions", title_justify="left")
        table.add_row("right colour", percent(t2i["right_color"]), percent(t2i["judge_color_accuracy"]))
        table.add_row("right shape", percent(t2i["right_shape"]), percent(t2i["judge_shape_accuracy"]))
        table.add_row(f"different pictures of {t2i['images_per_prompt']} (least, mean)", f"{t2i['distinct_min']}, {t2i['distinct_mean']:.1f}", "")
        distances = (f"{t2i[key]:.3f}" for key in ("frechet_distance", "frechet_of_reconstructions"))
        table.add_row("Fréchet distance on VQ features (right: real pictures through the VQ)", *distances)
        console.print(table)


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}%"
