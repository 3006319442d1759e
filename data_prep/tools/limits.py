"""When `liquid data filter` takes two samples for alike; docs/data.md tells what the defaults find and miss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MATCHES = ("auto", "image", "text", "both", "either")


@dataclass(frozen=True)
class Limits:
    """Up to which difference two samples are alike, and by what (`match`, one of MATCHES)."""

    match: str = "auto"
    image_distance: int = 10
    color_distance: int = 24
    text_similarity: float = 0.8

    def recipe(self) -> dict[str, Any]:
        """Those that `match` uses."""
        image = {"image_distance": self.image_distance, "color_distance": self.color_distance}
        text = {"text_similarity": self.text_similarity}
        return {
            "match": self.match,
            **(image if self.match != "text" else {}),
            **(text if self.match != "image" else {}),
        }
