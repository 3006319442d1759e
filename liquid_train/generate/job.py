"""`liquid generate`: images from prompts (t2i), answers and captions from images (i2t), text from text (t2t).

    t2i  OUTPUT/00000.png ... and index.jsonl {"file", "prompt", "seed"}; the seed of image i is seed + i
    i2t  questions=FILE: OUTPUT/answers.jsonl, every line with "answer" added
         image=FILE: the answer, or without a prompt a caption, is printed, and with output=DIR written to answers.jsonl
         too
    vqa  as i2t, with a question
    t2t  the continuation is printed as it comes, or with output=DIR written to completions.jsonl {"prompt", "text",
         "seed"}
    chat the same for a user's turn through the chat template; in both a prompt may name images, <image:FILE>

The same call again with the results in place does nothing and imports no torch.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from liquid_train.errors import UserError
from liquid_train.files import check_folder, naming
from liquid_train.generate.manifest import is_current, publish, staging_directory
from liquid_train.generate.request import CheckedRequest, images_in, parts_of, read_request
from liquid_train.generate.settings import GenerateJob
from liquid_train.logs import console

if TYPE_CHECKING:
    from liquid_train.generate.session import Session

log = logging.getLogger(__name__)


def run(config: GenerateJob) -> None:
    """Do what the config asks for. Raises UserError for a user's mistake, before the model is loaded where that can be
    told."""
    request = read_request(config)
    if request.output is not None and request.image is None and is_current(request.output, request.inputs):
        print(f"{request.output}: made with these settings already; nothing to do")
        return
    if request.output is not None:
        check_folder(request.output, f"output={request.output}")
    from liquid_train.generate.session import open_model

    session = open_model(request.model, config.device, config.precision, vq=config.vq, force=config.force)
    if request.generation.makes == "image":
        generate_images(config, request, session)
    elif request.generation.given == "prompt":
        complete_texts(config, request, session)
    elif request.questions:
        answer_questions(config, request, session)
    else:
        describe_image(config, request, session)


def generate_images(config: GenerateJob, request: CheckedRequest, session: Session) -> None:
    """Draw every prompt and write PNGs and index.jsonl, all at once at the end."""
    from liquid_train.generate.image_sampler import sample_images
    from liquid_train.generate.images import decode, save_png
    from liquid_train.generate.session import open_vq

    assert request.output is not None
    tokenizer = open_vq(session, config.vq, parts=("decoder",))
    grid, stated = session.image_size(config.size, tokenizer.downsampling)
    null_prompt = session.null_prompt(config.null_prompt, config.guidance)
    start, seeds = time.perf_counter(), [config.seed + i for i in range(len(request.prompts))]
    with progress_bar() as bar:
        task = bar.add_task("codes", total=None)
        codes = sample_images(
            session.model,
            session.vocabulary,
            request.prompts,
            seeds=seeds,
            grid=grid,
            guidance=config.guidance,
            temperature=config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
            batch_size=config.batch_size,
            suffix=session.card.prompt,
            size=stated,
            null_prompt=null_prompt,
            compile=config.compile,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
            task=config.task,
        )
    pixels = decode(tokenizer, codes)
    rows = [
        {"file": f"{i:05d}.png", "prompt": prompt, "seed": seed}
        for i, (prompt, seed) in enumerate(zip(request.prompts, seeds, strict=True))
    ]
    with staging_directory(request.output, f"output={request.output}") as partial:
        for row, image in zip(rows, pixels, strict=True):
            save_png(partial / str(row["file"]), image)
        write_lines(partial / "index.jsonl", rows)
        publish(partial, request.output, request.inputs)
    print(f"{len(rows)} images and index.jsonl in {request.output} ({time.perf_counter() - start:.1f} s)")


def answer_questions(config: GenerateJob, request: CheckedRequest, session: Session) -> None:
    """Answer a file of questions; an image that cannot be read gets no answer but an "error", and is counted and
    logged.

    Raises UserError when none can be read.
    """
    from liquid_train.generate.images import encode, load_image
    from liquid_train.generate.session import open_vq
    from liquid_train.generate.text_sampler import answer
    from liquid_train.image_tokenizer.preprocess import READ_ERRORS

    assert request.output is not None
    tokenizer = open_vq(session, config.vq, parts=("encoder",))
    codes: dict[Path, Any] = {}
    errors: dict[Path, str] = {}
    sizes = session.sizes(tokenizer.downsampling)
    for path in dict.fromkeys(q.image for q in request.questions):
        try:
            pixels = load_image(path, sizes)
        except READ_ERRORS as error:
            errors[path] = type(error).__name__
            log.warning("%s: not an image that can be read: %s", path, error)
        else:
            codes[path] = encode(tokenizer, pixels[None])[0]
    if not codes:
        raise UserError(f"questions={config.questions}: none of its {len(errors)} images can be read")
    asked = [q for q in request.questions if q.image in codes]
    with progress_bar() as bar:
        task = bar.add_task("answers", total=len(asked))
        answers = iter(
            answer(
                session.model,
                session.vocabulary,
                [(codes[q.image], q.question) for q in asked],
                max_new_tokens=config.max_new_tokens,
                batch_size=config.batch_size,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        )
    rows = [
        {**q.line, **({"answer": next(answers)} if q.image in codes else {"answer": None, "error": errors[q.image]})}
        for q in request.questions
    ]
    write_rows(request, "answers.jsonl", rows)
    bad = Counter(errors.values())
    left_out = (
        f"; images that could not be read: {', '.join(f'{n} {name}' for name, n in sorted(bad.items()))}" if bad else ""
    )
    print(f"{len(asked)} answers in {request.output / 'answers.jsonl'}{left_out}")


def describe_image(config: GenerateJob, request: CheckedRequest, session: Session) -> None:
    """Print the answer to one question about one image, or its caption without a question."""
    from liquid_train.generate.images import encode, load_image
    from liquid_train.generate.session import open_vq
    from liquid_train.generate.text_sampler import answer, caption
    from liquid_train.image_tokenizer.preprocess import READ_ERRORS

    assert request.image is not None
    tokenizer = open_vq(session, config.vq, parts=("encoder",))
    sizes = session.sizes(tokenizer.downsampling)
    try:
        pixels = load_image(request.image, sizes)
    except READ_ERRORS as error:
        raise UserError(f"image={request.image}: not an image that can be read: {error}") from error
    codes = encode(tokenizer, pixels[None])[0]
    model, vocabulary = session.model, session.vocabulary
    row = {"image": str(request.image)}
    if request.prompt:
        row |= {
            "question": request.prompt,
            "answer": answer(model, vocabulary, [(codes, request.prompt)], max_new_tokens=config.max_new_tokens)[0],
        }
    else:
        captions = caption(model, vocabulary, [codes], max_new_tokens=config.max_new_tokens, task=config.task)
        row |= {"answer": captions[0]}
    print(row["answer"])
    if request.output is not None:
        with staging_directory(request.output, f"output={request.output}") as partial:
            write_lines(partial / "answers.jsonl", [row])
            publish(partial, request.output, request.inputs)


def complete_texts(config: GenerateJob, request: CheckedRequest, session: Session) -> None:
    """Print what follows each prompt as it comes, or write it where an output is given."""
    from liquid_train.generate.image_sampler import Sampling
    from liquid_train.generate.text_sampler import Streamed, complete_ids

    vocabulary, task = session.vocabulary, request.task
    codes = named_images(config, request, session)
    prompts = [task.continued(parts_of(text, codes), vocabulary.tokenizer) for text in request.prompts]
    seeds = [config.seed + i for i in range(len(prompts))]
    sampling = Sampling(config.temperature, config.top_k, config.top_p)
    options: dict[str, Any] = {
        "max_new_tokens": config.max_new_tokens,
        "sampling": sampling,
        "batch_size": config.batch_size,
        "end": task.end(vocabulary.tokenizer),
    }
    if request.output is None:
        for ids, seed in zip(prompts, seeds, strict=True):
            streamed = Streamed(vocabulary, lambda text: print(text, end="", flush=True))
            text = complete_ids(session.model, vocabulary, [ids], seeds=[seed], on_token=streamed, **options)[0]
            print(text[len(streamed.shown) :])
        return
    texts = complete_ids(session.model, vocabulary, prompts, seeds=seeds, **options)
    rows = [{"prompt": p, "text": t, "seed": s} for p, t, s in zip(request.prompts, texts, seeds, strict=True)]
    write_rows(request, "completions.jsonl", rows)
    print(f"{len(texts)} texts in {request.output / 'completions.jsonl'}")


def named_images(config: GenerateJob, request: CheckedRequest, session: Session) -> dict[Path, Any]:
    """Codes [rows, columns] of the images that the prompts name. UserError for one that cannot be read."""
    from liquid_train.generate.images import encode, load_image
    from liquid_train.generate.session import open_vq
    from liquid_train.image_tokenizer.preprocess import READ_ERRORS

    paths = dict.fromkeys(path for prompt in request.prompts for path in images_in(prompt))
    if not paths:
        return {}
    tokenizer = open_vq(session, config.vq, parts=("encoder",))
    codes = {}
    for path in paths:
        try:
            pixels = load_image(path, session.sizes(tokenizer.downsampling))
        except READ_ERRORS as error:
            raise UserError(f"<image:{path}> in a prompt: not an image that can be read: {error}") from error
        codes[path] = encode(tokenizer, pixels[None])[0]
    return codes


def write_rows(request: CheckedRequest, name: str, rows: list[dict[str, Any]]) -> None:
    """Write OUTPUT/name; where the disk does not take it, the rows, which took the time, are printed. Raises UserError
    then."""
    assert request.output is not None
    try:
        with staging_directory(request.output, f"output={request.output}") as partial:
            write_lines(partial / name, rows)
            publish(partial, request.output, request.inputs)
    except UserError:
        print("\n".join(as_line(row) for row in rows))
        raise


def as_line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False)


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with naming(path):
        path.write_text("".join(as_line(row) + "\n" for row in rows), encoding="utf-8")


def progress_bar() -> Progress:
    """On stderr, so that what is printed can be piped on; nothing where stderr is no terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console(), transient=True, disable=not console().is_terminal)
