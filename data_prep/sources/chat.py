"""The `chat` source: conversations in LLaVA's JSON, with and without an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_prep.remote_input import RemotePath
from data_prep.source import ImageFile, SourceRow
from data_prep.sources import SOURCES
from data_prep.sources._captions import value_of
from data_prep.sources._listed import URL, ListSource

IMAGE_TOKEN = "<image>"  # where LLaVA's messages have the image
ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}
USUAL_IMAGE_KEYS = ("image", "images")


@SOURCES.register("chat")
class ChatSource(ListSource):
    """Conversations in LLaVA's format, one JSON array or JSON lines: {"image", "conversations": [{"from": "human",
    "value"}, ...]}.

    Chats without an image are kept as they are. KEY.json: `messages: [{"role", "content"}]`, `<image>` where the
    image belongs.
    """

    image_keys: tuple[str, ...] = USUAL_IMAGE_KEYS

    def needed(self) -> dict[str, tuple[str, ...]]:
        return {}  # chats without an image are kept

    def read_row(self, row: dict[str, Any], folder: Path | RemotePath, origin: str) -> SourceRow:
        messages = chat_messages(row.get("conversations", row.get("messages")))
        if messages is None:
            return SourceRow({}, problem="no conversation that a user begins and an assistant answers", origin=origin)
        image, problem = self._image(row)
        places = sum(m["content"].count(IMAGE_TOKEN) for m in messages)
        if problem is None and image is None and places:
            problem = "a conversation about an image that it does not name"
        if problem is None and image is not None and places > 1:
            problem = f"{places} times {IMAGE_TOKEN} for 1 image"  # training would drop it
        if problem or image is None:
            return SourceRow({"messages": messages} if not problem else {}, problem=problem, origin=origin)
        if not places:
            first = next(m for m in messages if m["role"] == "user")
            first["content"] = f"{IMAGE_TOKEN}\n{first['content']}"
        return SourceRow({"messages": messages}, ImageFile(folder / image), origin=f"{origin} ({image})")

    def _image(self, row: dict[str, Any]) -> tuple[str | None, str | None]:
        """(path of the image that a chat is about, None without one; why it cannot be used)."""
        if any(row.get(key) for key in ("video", "videos", "audio")):
            return None, "a video or sound"
        found: Any = next((value for key in self.image_keys if (value := value_of(row, key)) not in (None, "", [])), [])
        values = found if isinstance(found, list) else [found]
        if not values and any(row.get(key) for key in USUAL_IMAGE_KEYS):
            return None, f"an image, but not under {self.image_keys[0]}"
        if len(values) > 1:
            return None, "more than one image"
        if values and not isinstance(values[0], str):
            return None, "the image is no path"
        if values and URL.match(values[0]):
            return None, "the image is a URL, no file"
        return (values[0] if values else None), None


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
