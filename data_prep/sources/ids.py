"""The `ids` source: rows that are token ids already, with the tokenizer that made them."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from data_prep.settings import TokenizeSettings
from data_prep.source import SourceRow
from data_prep.sources import SOURCES
from data_prep.sources._documents import DocumentSource
from liquid_train.errors import UserError
from liquid_train.vocabulary import load_tokenizer, text_fingerprint, text_size

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@SOURCES.register("ids")
class IdsSource(DocumentSource):
    """A list of ids a row, without images. bos, eos and padding, which training sets itself, are borders of documents:
    a row that was packed of several becomes several samples."""

    usual = ("input_ids", "ids", "token_ids", "tokens")
    keys = ("text_key", "tokenizer", "keep")

    def __init__(self, settings: TokenizeSettings, seed: int) -> None:
        """Raises UserError without a tokenizer."""
        super().__init__(settings, seed)
        if settings.tokenizer is None:
            raise UserError(
                "tokenize.tokenizer has no value: tokenize.source=ids needs the folder of the tokenizer that made the "
                "ids, which training then compares with its own"
            )

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(str(self.settings.tokenizer))

    def recipe(self) -> dict[str, Any]:
        """With the tokenizer's fingerprint: its folder may be moved."""
        return {
            **{key: value for key, value in super().recipe().items() if key != "tokenizer"},
            "tokenizer_fingerprint": text_fingerprint(self.tokenizer),
        }

    def document(self, value: Any, origin: str) -> SourceRow:
        if not isinstance(value, list) or not value:
            return SourceRow({}, problem="no token ids", origin=origin)
        if not all(type(number) is int for number in value):
            return SourceRow({}, problem="ids that are no whole numbers", origin=origin)
        if min(value) < 0 or max(value) >= self._end:
            return SourceRow({}, problem="an id beyond the tokenizer's", origin=origin)
        ids = np.array(value, np.uint32)
        borders = np.flatnonzero(np.isin(ids, self._borders))
        documents = [piece[~np.isin(piece, self._borders)] for piece in np.split(ids, borders)]
        documents = [document for document in documents if document.size]
        if not documents:
            return SourceRow({}, problem="no token ids", origin=origin)
        return SourceRow({}, ids=tuple(documents), origin=origin)

    @cached_property
    def _end(self) -> int:
        return text_size(self.tokenizer)

    @cached_property
    def _borders(self) -> list[int]:
        t = self.tokenizer
        return [id for id in (t.bos_token_id, t.eos_token_id, t.pad_token_id) if id is not None]
