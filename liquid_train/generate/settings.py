"""Everything `liquid generate` reads."""

from __future__ import annotations

from dataclasses import dataclass, field

from liquid_train.image_tokenizer.settings import VQSettings


@dataclass
class GenerateJob:
    """Everything `liquid generate` reads."""

    checkpoint: str = "???"  # a run, a checkpoint or an HF folder
    task: str = "t2i"  # t2i, i2t, vqa, t2t or chat
    prompt: str | None = None
    prompts: str | None = None  # a text file, one prompt a line
    image: str | None = None
    questions: str | None = None  # a JSON-lines file of {"image", "question"}
    output: str | None = None  # a folder
    size: str | None = None  # WIDTHxHEIGHT in pixels; None = as trained
    seed: int = 0
    guidance: float = 3.0
    null_prompt: str = "auto"  # what guidance draws away from; auto = as trained
    force: bool = False
    temperature: float = 0.8
    top_k: int | None = None
    top_p: float = 1.0
    max_new_tokens: int = 64
    batch_size: int = 32
    precision: str = "fp32"
    compile: bool = False
    device: str = "auto"
    vq: VQSettings = field(default_factory=VQSettings)
