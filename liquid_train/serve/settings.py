"""Everything `liquid serve` reads."""

from __future__ import annotations

from dataclasses import dataclass, field

from liquid_train.image_tokenizer.settings import VQSettings


@dataclass
class ServeLimits:
    """What one request, and all of them together, may take."""

    waiting: int = 64  # requests that wait while one is answered; the next one is told to come back (503)
    characters: int = 4000  # of a prompt or question
    pictures: int = 4  # drawn by one request; on a GPU all are drawn in batches of this size
    new_tokens: int = 512  # of one answer
    pixels: int = 2**24  # of one image, sent or drawn
    body_mib: float = 16.0  # of one request


@dataclass
class ServeJob:
    """Everything `liquid serve` reads."""

    checkpoint: str = "???"  # a run, a checkpoint or an HF folder
    host: str = "127.0.0.1"
    port: int = 7860
    ui: bool = True  # the page next to the API
    limits: ServeLimits = field(default_factory=ServeLimits)
    force: bool = False
    precision: str = "fp32"
    device: str = "auto"
    vq: VQSettings = field(default_factory=VQSettings)
