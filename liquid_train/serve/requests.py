"""What can be asked for: the bodies of POST /generate and POST /answer, and the limits that the page keeps to as well.

Fields and their ranges are pydantic's, so that /docs states them. What depends on the model or on the limits of this
server is checked in `Limited`.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from liquid_train.errors import UserError
from liquid_train.generate.settings import GenerateJob
from liquid_train.image_tokenizer.preprocess import READ_ERRORS, open_image
from liquid_train.serve.settings import ServeLimits
from liquid_train.text_normalizer import normalize_text

MAX_SEED = 2**32 - 1
STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def is_text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError("half of a surrogate pair is no text; give UTF-8") from None
    text = normalize_text(text)
    if not text.strip():
        raise UserError("there is nothing in it; give some text")
    return text


def is_size(text: str) -> str:
    if not re.fullmatch(r"[1-9]\d{0,4}x[1-9]\d{0,4}", text):
        raise UserError("give WIDTHxHEIGHT in pixels, for example 512x512")
    return text


Text = Annotated[str, AfterValidator(is_text)]
Size = Annotated[str, AfterValidator(is_size)]


class GenerateRequest(BaseModel):
    """Images of one prompt; image i is generated with seed + i."""

    model_config = STRICT
    prompt: Text
    count: int = Field(default=1, ge=1)
    size: Size | None = Field(default=None, description="WIDTHxHEIGHT in pixels; null: the model's usual one")
    seed: int = Field(default=GenerateJob.seed, ge=0, le=MAX_SEED)
    guidance: float = Field(
        default=GenerateJob.guidance, ge=0, le=100, description="uncond + guidance * (cond - uncond); 1: none"
    )
    temperature: float = Field(default=GenerateJob.temperature, ge=0, le=100, description="0: greedy")
    top_k: int | None = Field(default=GenerateJob.top_k, ge=1)
    top_p: float = Field(default=GenerateJob.top_p, gt=0, le=1)


class AnswerRequest(BaseModel):
    """The answer to a question about an image, or without a question its caption."""

    model_config = STRICT
    image: Text = Field(description="an image file, base64; a data: URL is taken too")
    question: Text | None = None
    max_new_tokens: int | None = Field(
        default=None,
        ge=1,
        description=f"null: {GenerateJob.max_new_tokens}, or this server's limit where that is lower",
    )


class Limited:
    """The limits of a server. Every check raises UserError with the key, the value and the limit."""

    def __init__(self, limits: ServeLimits) -> None:
        self.limits = limits

    def text(self, key: str, text: str) -> None:
        allowed = self.limits.characters
        if len(text) > allowed:
            raise UserError(f"{key}: {len(text)} characters, at most {allowed} are allowed (limits.characters)")

    def count(self, count: int) -> None:
        if count > self.limits.pictures:
            raise UserError(f"count={count}: at most {self.limits.pictures} images a request (limits.pictures)")

    @property
    def usual_tokens(self) -> int:
        """How long an answer gets where nobody says it."""
        return min(GenerateJob.max_new_tokens, self.limits.new_tokens)

    def new_tokens(self, number: int | None) -> None:
        if number is not None and number > self.limits.new_tokens:
            raise UserError(f"max_new_tokens={number}: at most {self.limits.new_tokens} (limits.new_tokens)")

    def pixels(self, key: str, width: int, height: int) -> None:
        if width * height > self.limits.pixels:
            raise UserError(
                f"{key}: {width}x{height} pixels, at most {self.limits.pixels:,} in all are allowed (limits.pixels)"
            )

    def image(self, key: str, content: bytes) -> None:
        """By its header alone: what follows is read when the request's turn comes, so that only one image is in
        memory."""
        try:
            with open_image(content) as image:
                width, height = image.size
        except READ_ERRORS as error:
            raise UserError(
                f"{key}: not an image that can be read; give a JPEG, PNG, WebP, GIF, BMP or TIFF file"
            ) from error
        self.pixels(key, width, height)


def image_content(text: str) -> bytes:
    """The file after base64 or a data: URL. UserError for anything else."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError("image: not base64; give the content of an image file in base64") from error


def field_message(error: Mapping[str, Any]) -> str:
    """One of pydantic's errors in a line; the value itself is left out, it may be an image."""
    if error["type"] == "json_invalid":
        return f"the body is not JSON: {error.get('ctx', {}).get('error', '')}"
    names = [str(part) for part in error["loc"] if part != "body"]
    if not names:
        return "the body must be a JSON object, sent with Content-Type: application/json"
    key = ".".join(names)
    return (
        f"{key}: no such key"
        if error["type"] == "extra_forbidden"
        else f"{key}: {error['msg'].removeprefix('Value error, ')}"
    )
