"""What the image tokenizer keeps of a set's own images: PSNR of a few dozen of them, decoded from their codes.

An image tokenizer made for other images still gives codes, and training on them still runs: only a look at what they
decode to tells. The tokenizer of easy-VQA gives its own images back with 33 dB, coloured signs on white with 18, emoji
with 12, photos with 6; published 16-fold VQGANs give photos back with 19 to 22 dB (their papers).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from liquid_train.errors import UserError

if TYPE_CHECKING:  # torch is imported only where something is left to encode
    from data_prep.encode.encoding import Encoding
    from data_prep.source import ReadImage

log = logging.getLogger(__name__)

SAMPLED = 32  # images, at most
ROWS_FOR_ONE = 50  # rows of the set for each of them: decoding costs twice what encoding does
AT_LEAST = 4
LOW_DB = 18.0
MOST_DB = 100.0  # of images that come back exactly: a mean exists then


def sampled_rows(rows: int, shard_size: int) -> list[int]:
    """Which rows of a set are decoded, ascending: half of them in its first shard, for an early warning, the others
    spread over all. They depend on nothing else, so that parts agree on them."""
    count = min(rows, SAMPLED, max(AT_LEAST, rows // ROWS_FOR_ONE))
    early, first = (count + 1) // 2, min(rows, shard_size)
    spread = count - early
    return sorted(
        {i * first // early for i in range(early)} | {(2 * i + 1) * rows // (2 * spread) for i in range(spread)}
    )


class Reconstruction:
    """Decodes single images; the decoder is loaded for the first one."""

    def __init__(self, encoding: Encoding) -> None:
        self.encoding = encoding
        self._decoder: Any = None
        self._without = False  # the tokenizer has no decoder

    def psnr(self, image: ReadImage, codes: np.ndarray) -> float | None:
        """dB between an image, cropped as for the encoder, and what its codes [rows, columns] give; None where that
        cannot be told."""
        from data_prep.encode.encoder import Cropped, one_exact_thread, prepare
        from liquid_train.generate.images import decode

        cropped = None if self._without else prepare(image, self.encoding.crop)
        if not isinstance(cropped, Cropped):
            return None
        try:
            with one_exact_thread():
                made = decode(self._open(), codes[None])[0]
        except (UserError, NotImplementedError) as error:  # of a kind that only encodes
            log.info("no PSNR of the images: %s", error)
            self._without = True
            return None
        squared = np.square(cropped.pixels.astype(np.float64) - made).mean()
        return round(min(MOST_DB, 10 * float(np.log10(255**2 / max(squared, 1e-9)))), 2)

    def _open(self) -> Any:
        from liquid_train.image_tokenizer.opening import open_image_tokenizer

        if self._decoder is None:
            encoder = self.encoding.encoder
            self._decoder = open_image_tokenizer(encoder.settings.vq, ("decoder",)).to(encoder.device)
        return self._decoder


def summary(of_shards: list[list[float]]) -> dict[str, Any]:
    """PSNR of a set for its index.json: the mean over images, in dB, and how many they are; {} for none."""
    values = [value for values in of_shards for value in values]
    return {"psnr": {"db": round(float(np.mean(values)), 1), "images": len(values)}} if values else {}


def warn_if_low(what: str, psnr: dict[str, Any]) -> None:
    """psnr: as in index.json."""
    if psnr["db"] < LOW_DB:
        log.warning(
            "%s: %d of its images come back from their codes with a PSNR of %.1f dB (a fitting image tokenizer: 19 to "
            "30): nothing finer can be learned from them. Look at them (liquid data verify SET --sheet a.png), then "
            "take another image tokenizer (vq=NAME vq.checkpoint=FILE), or train one on such images",
            what,
            psnr["images"],
            psnr["db"],
        )
