"""Sources that are lists with paths of images: JSON lines (`pairs`, `vqa`) and LLaVA's JSON (`chat`)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import ijson

from data_prep.settings import TokenizeSettings
from data_prep.sources.base import DAMAGED, FileSource, Item, caption, readable
from liquid_train.errors import UserError
from liquid_train.image_tokenizer.preprocess import read_rgb

TEXT_KEYS = ("text_prompt", "text", "caption")
IMAGE_TOKEN = "<image>"  # where LLaVA's messages have the image
ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}

BEGINNING = 4096  # bytes, in which an array shows its bracket
BOM = b"\xef\xbb\xbf"  # which some editors put before UTF-8

Row = dict[str, Any] | str  # a row, or why it is none


class ListSource(FileSource):
    """Rows with `image_path`, relative to tokenize.images or else to the list's own folder."""

    suffixes: tuple[str, ...] = (".jsonl",)
    keys: tuple[str, ...] = ("images", "image_key")
    image_key = "image_path"

    def __init__(self, settings: TokenizeSettings) -> None:
        super().__init__(settings)
        if settings.images is not None and not Path(settings.images).expanduser().is_dir():
            raise UserError(
                f"tokenize.images={settings.images}: no such folder; paths of images in the list are taken from there"
            )

    def rows_from(self, name: str, start: int) -> Iterator[Item]:
        path = self.files[name]
        folder = Path(self.settings.images).expanduser() if self.settings.images else path.parent
        for number, row in enumerate(islice(self.rows(path), start, None), start):
            origin = f"{name}, row {number}"
            yield Item({}, problem=row, origin=origin) if isinstance(row, str) else self.item(row, folder, origin)

    def count(self, name: str) -> int:
        return sum(1 for _ in self.rows(self.files[name]))

    def rows(self, path: Path) -> Iterator[Row]:
        return json_lines(path)

    def item(self, row: dict[str, Any], folder: Path, origin: str) -> Item:
        image = row.get(self.settings.image_key or self.image_key)
        if not isinstance(image, str) or not image:
            return Item({}, problem=f"no {self.settings.image_key or self.image_key}", origin=origin)
        return self.described(row, partial(read_rgb, folder / image), f"{origin} ({image})")

    def described(self, row: dict[str, Any], image: partial, origin: str) -> Item:
        raise NotImplementedError


class PairsSource(ListSource):
    """Images with a caption: {"image_path", "text_prompt" (or "text", or "caption")} a line, the published pair
    format."""

    keys = ("images", "image_key", "text_key")

    def described(self, row: dict[str, Any], image: partial, origin: str) -> Item:
        keys = (self.settings.text_key,) if self.settings.text_key else TEXT_KEYS
        text = caption(row, keys)
        return (
            Item({}, image, text, origin=origin) if text else Item({}, problem=f"no {' or '.join(keys)}", origin=origin)
        )


class VQASource(ListSource):
    """Images with questions: {"image_path", "questions": [{"question", "answers": [...]}]} a line; `question`,
    `answer` alone too."""

    def described(self, row: dict[str, Any], image: partial, origin: str) -> Item:
        questions = answered(row["questions"] if isinstance(row.get("questions"), list) else [row])
        if not questions:
            return Item({}, problem="no question with an answer", origin=origin)
        return Item({"questions": questions}, image, caption(row, ("caption",)), origin=origin)


def answered(entries: list[Any]) -> list[dict[str, Any]]:
    """Those of a list's questions that have an answer, as KEY.json has them."""
    return [q for q in map(question, entries) if q is not None]


def question(entry: Any) -> dict[str, Any] | None:
    """One question with its answers as KEY.json has it; None where either is missing."""
    if not isinstance(entry, dict):
        return None
    answers = entry.get("answers") if entry.get("answers") is not None else entry.get("answer")
    answers = [
        a.get("answer") if isinstance(a, dict) else a for a in (answers if isinstance(answers, list) else [answers])
    ]
    answers = [str(a) for a in answers if isinstance(a, (str, int, float)) and str(a).strip()]
    asked = entry.get("question")
    return {"question": asked, "answers": answers} if isinstance(asked, str) and asked.strip() and answers else None


class ChatSource(ListSource):
    """Conversations in LLaVA's format, one JSON array or JSON lines: {"image", "conversations": [{"from": "human",
    "value"}, ...]}.

    Chats without an image are kept as they are. KEY.json: `messages: [{"role", "content"}]`, `<image>` where the
    image belongs.
    """

    suffixes = (".json", ".jsonl")
    image_key = "image"

    def rows(self, path: Path) -> Iterator[Row]:
        return json_lines(path) if path.suffix == ".jsonl" else json_array(path)

    def item(self, row: dict[str, Any], folder: Path, origin: str) -> Item:
        messages = chat_messages(row.get("conversations", row.get("messages")))
        if messages is None:
            return Item({}, problem="no conversation that a user begins and an assistant answers", origin=origin)
        image = row.get(self.settings.image_key or self.image_key)
        if isinstance(image, list) and len(image) <= 1:
            image = image[0] if image else None
        if image is None or image == "":
            if any(IMAGE_TOKEN in m["content"] for m in messages):
                return Item({}, problem="a conversation about an image that it does not name", origin=origin)
            return Item({"messages": messages}, origin=origin)
        if not isinstance(image, str):
            return Item({}, problem="more than one image", origin=origin)
        if not any(IMAGE_TOKEN in m["content"] for m in messages):
            first = next(m for m in messages if m["role"] == "user")
            first["content"] = f"{IMAGE_TOKEN}\n{first['content']}"
        return Item({"messages": messages}, partial(read_rgb, folder / image), origin=f"{origin} ({image})")


def chat_messages(turns: Any) -> list[dict[str, str]] | None:
    """LLaVA's or OpenAI's turns -> [{"role", "content"}]; None where they are no conversation."""
    if not isinstance(turns, list):
        return None
    messages = []
    for turn in turns:
        if not isinstance(turn, dict):
            return None
        role, content = ROLES.get(str(turn.get("from", turn.get("role")))), turn.get("value", turn.get("content"))
        if role is None or not isinstance(content, str):
            return None
        messages.append({"role": role, "content": content})
    roles = [m["role"] for m in messages if m["role"] != "system"]
    alternate = roles and all(r == ("user", "assistant")[i % 2] for i, r in enumerate(roles))
    return messages if alternate and "assistant" in roles else None


def json_lines(path: Path) -> Iterator[Row]:
    """One row a line that is not blank."""
    with open(path, "rb") as file:
        for line in file:
            if line.strip():
                yield parse_row(line)


def parse_row(line: bytes) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return "row is not JSON"
    if b"\\u" in line:
        row = readable(row)
    return row if isinstance(row, dict) else "row is not a JSON object"


def json_array(path: Path) -> Iterator[Row]:
    """The elements of one JSON array, read as a stream; where the file breaks off, one last row says so."""
    with open(path, "rb") as file:
        file.seek(len(BOM) if file.read(len(BOM)) == BOM else 0)
        begin = file.tell()
        if next(iter(file.read(BEGINNING).split()), b"[")[:1] != b"[":
            yield "the file is not a JSON array"
            return
        file.seek(begin)
        try:
            for row in ijson.items(file, "item", use_float=True):
                yield readable(row) if isinstance(row, dict) else "row is not a JSON object"
        except ijson.JSONError:
            yield DAMAGED
