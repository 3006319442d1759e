"""Images that cannot be read just now: a network or a disk that fails, a folder that was there and is away.

That is no damage. It is waited out, and where that does not help the job ends, so that the same command goes on later.
A file that is missing while its folder is there, and a folder that was never there, are the list's mistakes: they are
counted.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from pathlib import Path

import numpy as np

from data_prep.remote_input import RemotePath
from data_prep.source import ImageFile, ReadImage
from liquid_train.errors import UserError

log = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0  # seconds; doubled from one to the next
# What a system says of a file that is there but out of reach
AWAY = {
    errno.EIO,
    errno.ESTALE,
    errno.ENODEV,
    errno.ENXIO,
    errno.ENOTCONN,
    errno.ETIMEDOUT,
    errno.ECONNRESET,
    errno.ECONNABORTED,
    errno.ECONNREFUSED,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETUNREACH,
}


class Patience:
    """Reads images for one process. seconds: how long an image is waited for; 0: never."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._there: set[Path] = set()  # folders in which something was found, and those around them

    def read(self, image: ReadImage) -> np.ndarray:
        """The pixels. Raises what the image raises, and UserError where it stays out of reach."""
        if not isinstance(image, ImageFile) or not self.seconds:
            return image()
        started, pause = time.monotonic(), FIRST_PAUSE
        while True:
            try:
                pixels = image()
            except OSError as error:
                away = self._away(image.path, error)
                if away is None:
                    raise
                if time.monotonic() - started > self.seconds:
                    raise UserError(
                        f"{away}, for {self.seconds:g} seconds; finished shards are kept, the same command goes on "
                        "from there (tokenize.wait=SECONDS waits longer, 0 counts such images as missing)"
                    ) from error
                if pause == FIRST_PAUSE:
                    log.warning("%s: waiting up to %g seconds for it", away, self.seconds)
                time.sleep(pause)
                pause = min(LONGEST_PAUSE, 2 * pause)
            else:
                if isinstance(image.path, Path) and image.path.parent not in self._there:
                    self._there.update(image.path.parents)
                return pixels

    def _away(self, path: Path | RemotePath, error: OSError) -> str | None:
        """Why it may be possible to read a file later; None where it is missing, or read and damaged."""
        if error.errno in AWAY:
            return f"{path}: cannot be read: {error.strerror}"
        if not isinstance(error, FileNotFoundError | NotADirectoryError) or not isinstance(path, Path):
            return None
        gone = [folder for folder in path.parents if folder in self._there and _is_empty(folder)]
        return f"{gone[-1]}: was there, and is not any more" if gone else None


def _is_empty(folder: Path) -> bool:
    """Whether a folder is not there, or has nothing in it, as one where nothing is mounted."""
    try:
        return not any(os.scandir(folder))
    except OSError:
        return True
