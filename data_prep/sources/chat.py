"""The `chat` source: conversations in LLaVA's JSON, with and without an image."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import ijson

from data_prep.source import DAMAGED, SourceRow, readable
from data_prep.sources import SOURCES
from data_prep.sources._listed import ListRow, ListSource, jsonl_rows
from liquid_train.image_tokenizer.preprocess import read_rgb

IMAGE_TOKEN = "<image>"  # where LLaVA's messages have the image
ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}

BEGINNING = 4096  # bytes, in which an array shows its bracket
BOM = b"\xef\xbb\xbf"  # which some editors put before UTF-8


@SOURCES.register("chat")
class ChatSource(ListSource):
    """Conversations in LLaVA's format, one JSON array or JSON lines: {"image", "conversations": [{"from": "human",
    "value"}, ...]}.

    Chats without an image are kept as they are. KEY.json: `messages: [{"role", "content"}]`, `<image>` where the
    image belongs.
    """

    suffixes = (".json", ".jsonl")
    image_key = "image"

    def rows(self, path: Path) -> Iterator[ListRow]:
        return jsonl_rows(path) if path.suffix == ".jsonl" else json_array(path)

    def read_row(self, row: dict[str, Any], folder: Path, origin: str) -> SourceRow:
        messages = chat_messages(row.get("conversations", row.get("messages")))
        if messages is None:
            return SourceRow({}, problem="no conversation that a user begins and an assistant answers", origin=origin)
        image = row.get(self.settings.image_key or self.image_key)
        if isinstance(image, list) and len(image) <= 1:
            image = image[0] if image else None
        if image is None or image == "":
            if any(IMAGE_TOKEN in m["content"] for m in messages):
                return SourceRow({}, problem="a conversation about an image that it does not name", origin=origin)
            return SourceRow({"messages": messages}, origin=origin)
        if not isinstance(image, str):
            return SourceRow({}, problem="more than one image", origin=origin)
        if not any(IMAGE_TOKEN in m["content"] for m in messages):
            first = next(m for m in messages if m["role"] == "user")
            first["content"] = f"{IMAGE_TOKEN}\n{first['content']}"
        return SourceRow({"messages": messages}, partial(read_rgb, folder / image), origin=f"{origin} ({image})")


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


def json_array(path: Path) -> Iterator[ListRow]:
    """The elements of one JSON array, read as a stream; a file that breaks off ends with a row that reports it."""
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
