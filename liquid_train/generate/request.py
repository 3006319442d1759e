"""What `liquid generate` was asked for, checked before anything heavy is imported."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from liquid_train.checkpoint.folder import model_folder
from liquid_train.data.sequence_pieces import Part
from liquid_train.data.tasks import Generation, Task, generating_task
from liquid_train.errors import UserError
from liquid_train.files import lines_of
from liquid_train.generate.manifest import file_identity, model_identity, text_digest, vq_identity
from liquid_train.generate.settings import GenerateJob
from liquid_train.text_normalizer import normalize_json, normalize_text

PLACE = re.compile(r"<image:([^<>]+)>")  # in a prompt: where an image stands


@dataclass(frozen=True)
class QuestionLine:
    """One line of a questions file; `line` is all it says, `image` where its image is."""

    image: Path
    question: str
    line: dict[str, Any]


@dataclass(frozen=True)
class CheckedRequest:
    """prompts: of tasks that are given prompts. questions: of tasks that are given images, with a file. image, prompt:
    of those with one image (no prompt: a caption).

    inputs: everything that determines what is written to `output`.
    """

    task: Task
    generation: Generation
    model: Path
    output: Path | None
    prompts: list[str]
    questions: list[QuestionLine]
    image: Path | None
    prompt: str | None
    inputs: dict[str, Any]


def read_request(c: GenerateJob) -> CheckedRequest:
    """Check the keys against each other and read the files they name. Raises UserError with the key, the value and a
    remedy."""
    if c.max_new_tokens < 1:
        raise UserError(f"max_new_tokens={c.max_new_tokens}: must be 1 or more")
    prompt = None if c.prompt is None else normalize_text(c.prompt)
    task, generation = generating_task(c.task, "task")
    folder = model_folder(c.checkpoint)
    prompts: list[str] = []
    questions: list[QuestionLine] = []
    inside: list[Path] = []  # images that prompts name
    if generation.given == "image":
        _refuse(c, "prompts")
        if generation.question == "none":
            _refuse(c, "prompt", "questions")
            if c.image is None:
                raise UserError(f"task={c.task}: give image=FILE")
        if (c.image is None) == (c.questions is None):
            raise UserError(
                f"task={c.task}: give either image=FILE (with prompt=... for a question about it) or "
                "questions=FILE.jsonl"
            )
        if c.questions is not None:
            _refuse(c, "prompt")
            _need_output(c, "answers.jsonl")
            questions = read_questions(Path(c.questions))
        elif not Path(str(c.image)).is_file():
            raise UserError(f"image={c.image}: no such file; give an image")
        elif generation.question == "required" and not c.prompt:
            raise UserError(f'task={c.task}: give the question, prompt="..."; task=i2t captions an image')
    else:
        _refuse(c, "image", "questions")
        if (c.prompt is None) == (c.prompts is None):
            raise UserError(f'task={c.task}: give either prompt="..." or prompts=FILE.txt')
        prompts = [prompt] if prompt is not None else read_prompts(Path(str(c.prompts)))
        if generation.makes == "image":
            _need_output(c, "the images")
        else:
            inside = [path for prompt in prompts for path in images_in(prompt)]
            for path in inside:
                if not path.is_file():
                    raise UserError(f"<image:{path}> in a prompt: no such file; give an image")
    image = Path(c.image) if c.image is not None else None
    output = Path(c.output) if c.output is not None else None
    if output is not None and output.exists() and not output.is_dir():
        raise UserError(f"output={output}: a file is there; give the name of a folder")
    asked = [*prompts, *(json.dumps(q.line, sort_keys=True) for q in questions), *([str(prompt)] if image else [])]
    images = [q.image for q in questions] or ([image] if image else inside)
    inputs = _inputs(c, generation, folder, asked, images)
    return CheckedRequest(task, generation, folder, output, prompts, questions, image, prompt, inputs)


def parts_of(text: str, codes: Mapping[Path, np.ndarray]) -> list[Part]:
    """The words of a prompt, and the codes of an image where <image:FILE> stands. codes: grids [rows, columns] by
    file."""
    # split gives text, file, text, file, ..., text
    return [codes[Path(part)] if n % 2 else part for n, part in enumerate(PLACE.split(text))]


def images_in(prompt: str) -> list[Path]:
    """Files that a prompt names as <image:FILE>, in their order."""
    return [Path(name) for name in PLACE.findall(prompt)]


def read_prompts(path: Path) -> list[str]:
    """One prompt a line, blank lines left out. Raises UserError for a missing, unreadable or empty file."""
    lines = [normalize_text(line).strip() for line in lines_of(_read(path, "prompts"))]
    found = [line for line in lines if line]
    if not found:
        raise UserError(f"prompts={path}: no prompt in it; write one a line")
    return found


def read_questions(path: Path) -> list[QuestionLine]:
    """Lines {"image", "question"}; an image's path is relative to the file's folder, or else to the working folder.

    Raises UserError for a missing or empty file, for a line that is not such an object and for images that do not
    exist.
    """
    found = []
    for number, text in enumerate(lines_of(_read(path, "questions")), start=1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
            image, question = line["image"], line["question"]
            line = normalize_json(line)  # but for the image's own name: it may spell bytes that are no text
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise UserError(
                f'questions={path}, line {number}: not a JSON object with "image" and "question"'
            ) from error
        if not isinstance(image, str) or not isinstance(question, str):
            raise UserError(f'questions={path}, line {number}: "image" and "question" must be text')
        nearby = path.parent / image  # an absolute path stays what it is
        found.append(QuestionLine(nearby if nearby.is_file() else Path(image), line["question"], line))
    if not found:
        raise UserError(f'questions={path}: no question in it; write one JSON object {{"image", "question"}} a line')
    missing = [q.image for q in found if not q.image.is_file()]
    if missing:
        raise UserError(f"questions={path}: {len(missing)} of its images do not exist, the first is {missing[0]}")
    return found


def _read(path: Path, key: str) -> str:
    if not path.is_file():
        raise UserError(f"{key}={path}: no such file")
    try:
        return path.read_bytes().decode("utf-8-sig")  # read_text would take a lone carriage return for a line's end
    except UnicodeDecodeError as error:
        raise UserError(f"{key}={path}: not UTF-8 text (byte {error.start})") from error


def _refuse(c: GenerateJob, *keys: str) -> None:
    for key in keys:
        if getattr(c, key) is not None:
            raise UserError(f"{key}={getattr(c, key)}: task={c.task} does not read it; leave it out")


def _need_output(c: GenerateJob, what: str) -> None:
    if c.output is None:
        raise UserError(f"output has no value; give output=DIR for {what}")


def _inputs(
    c: GenerateJob, generation: Generation, folder: Path, asked: list[str], images: list[Path]
) -> dict[str, Any]:
    """Everything that decides the results, and nothing that does not (batch_size, device)."""
    keys: tuple[str, ...] = ("max_new_tokens", "precision")  # text about an image is not sampled: the likeliest
    if generation.makes == "image":
        keys = ("seed", "guidance", "null_prompt", "size", "temperature", "top_k", "top_p", "precision", "compile")
    elif generation.given == "prompt":
        keys = ("seed", "temperature", "top_k", "top_p", *keys)
    return {
        "task": c.task,
        "model": model_identity(folder),
        **vq_identity(c.vq),
        "asked": text_digest("\n".join(asked)),
        "images": text_digest(json.dumps([file_identity(path) for path in images])),
        **{key: getattr(c, key) for key in keys},
    }
