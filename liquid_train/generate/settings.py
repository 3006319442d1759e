"""Everything `liquid generate` reads."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, Literal

from liquid_train.config.fields import MISSING, Section, require, setting
from liquid_train.config.log_settings import LogConfig
from liquid_train.data.tasks import generating_task
from liquid_train.image_tokenizer.settings import AUTO, VQSettings

Precision = Literal["fp32", "bf16", "int8"]


def trained_with() -> VQSettings:
    """The image tokenizer that a checkpoint was trained with."""
    return VQSettings(AUTO, AUTO, AUTO)


@dataclass
class GenerateJob(Section):
    """Images from prompts (t2i), captions and answers from images (i2t, vqa), text from text (t2t), a turn of a chat
    (chat)."""

    checkpoint: Annotated[
        str, setting("a run (its newest checkpoint), a checkpoint, or a model/ folder", is_path=True)
    ] = MISSING
    task: Annotated[
        str, setting("what is generated from what: t2i, i2t, vqa, t2t, chat, or the import path of a task of your own")
    ] = "t2i"
    prompt: Annotated[
        str | None,
        setting(
            "t2i, t2t, chat: one prompt, in the latter two with <image:FILE> where an image stands; i2t, vqa: a "
            "question",
            null="i2t: a caption",
        ),
    ] = None
    prompts: Annotated[str | None, setting("t2i, t2t: a text file, one prompt a line", null="none", is_path=True)] = (
        None
    )
    image: Annotated[
        str | None,
        setting(
            "i2t: one image; of another size than the trained one, it is scaled and cropped to its centre",
            null="none",
            is_path=True,
        ),
    ] = None
    questions: Annotated[
        str | None, setting('i2t: a JSON-lines file of {"image", "question"}', null="none", is_path=True)
    ] = None
    output: Annotated[
        str | None,
        setting("a folder; t2i and questions need one", null="text is printed as it comes", is_path=True),
    ] = None
    size: Annotated[
        str | None,
        setting("t2i: WIDTHxHEIGHT in pixels, one of those the checkpoint was trained on", null="its usual one"),
    ] = None
    seed: Annotated[int, setting("image i is generated with seed + i", ge=0, le=2**63 - 1)] = 0
    guidance: Annotated[
        float,
        setting(
            "t2i: logits = uncond + guidance * (cond - uncond), so that 7 means cond*7 - uncond*6; 1: none",
            ge=0,
            le=1000,
        ),
    ] = 3.0
    null_prompt: Annotated[
        str, setting("t2i: what guidance leads away from; auto: as trained. Another one needs force=true")
    ] = "auto"
    force: Annotated[
        bool, setting("take another null prompt, image tokenizer or size than the checkpoint was trained with")
    ] = False
    temperature: Annotated[
        float, setting("t2i, t2t, chat; 0: greedy. Answers and captions are always greedy", ge=0, le=1000)
    ] = 0.8
    top_k: Annotated[int | None, setting("t2i, t2t: only the k likeliest", ge=1, null="all")] = None
    top_p: Annotated[float, setting("t2i, t2t: only the likeliest that make up this share", gt=0, le=1)] = 1.0
    max_new_tokens: Annotated[int, setting("i2t, t2t: length of an answer, at most", ge=1)] = 64
    batch_size: Annotated[int, setting("prompts or questions together; decides the speed, not the result", ge=1)] = 32
    precision: Annotated[Precision, setting("int8: bf16 with one byte for each weight of the layers")] = "fp32"
    compile: Annotated[
        bool, setting("t2i: compiled steps (CUDA graphs on a GPU); half a minute first, and needs a C++ compiler")
    ] = False
    device: Annotated[str, setting("auto: a GPU where there is one; else cpu, cuda, cuda:N")] = "auto"
    vq: VQSettings = field(default_factory=trained_with)
    log: LogConfig = field(default_factory=LogConfig)

    def check(self, key: str) -> None:
        size = self.size
        require(
            size is None or re.fullmatch(r"[1-9]\d*x[1-9]\d*", size) is not None,
            f"{key}size={size}: give WIDTHxHEIGHT in pixels, for example 512x512",
        )
        images = generating_task(self.task, f"{key}task")[1].makes == "image"
        require(size is None or images, f"{key}size={size}: only task=t2i generates images; leave it out")
        require(
            not self.compile or images,
            f"{key}compile=true: only the steps of task=t2i are compiled; leave it out",
        )
