"""Text ids, image ids and special tokens: the one place that knows where image ids start.

    ids  0 ............ text_size-1 | text_size ... +codebook-1 | ... rows-1
         text and special tokens    | image codes               | never win

Image ids start after the tokenizer's last id, not at config.vocab_size (they differ for Qwen2.5), as in the published
checkpoint: at len(tokenizer), unless its ids have gaps (those made from cl100k do).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from liquid_train.errors import UserError
from liquid_train.model.families import Family, special_token_triples

if TYPE_CHECKING:  # most of a second, which what only checks a prompt or a config need not spend
    from transformers import PreTrainedTokenizerBase

BOI, EOI, UNCONDITIONAL = "<boi>", "<eoi>", "<unconditional>"
ENDOFTEXT = "<|endoftext|>"
IMAGE_TOKENS = (BOI, EOI, UNCONDITIONAL)
USUAL_EOS = ("</s>", ENDOFTEXT, "<eos>", "<|end_of_text|>")


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer and the image codes after it. `rows` is the number of embedding rows of the model."""

    tokenizer: PreTrainedTokenizerBase
    codebook_size: int
    rows: int

    @property
    def text_size(self) -> int:
        """One past the last id of a text or special token."""
        return text_size(self.tokenizer)

    @property
    def image_start(self) -> int:
        return self.text_size

    @property
    def image_end(self) -> int:
        """One past the last image id."""
        return self.text_size + self.codebook_size

    @property
    def boi(self) -> int:
        return self.id_of(BOI)

    @property
    def eoi(self) -> int:
        return self.id_of(EOI)

    @property
    def unconditional(self) -> int:
        return self.id_of(UNCONDITIONAL)

    @property
    def eos(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def pad(self) -> int:
        """An id for positions nobody reads; eos where the tokenizer has no pad token."""
        return self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.eos

    def id_of(self, token: str) -> int:
        return special_id(self.tokenizer, token)


def text_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """One past a tokenizer's last id, where image ids start; above len(tokenizer) where its ids have
    gaps."""
    return _text_size(tokenizer, len(tokenizer))


@lru_cache(maxsize=16)  # a vocabulary of 150,000 entries takes 50 ms to look through, and every image asks
def _text_size(tokenizer: PreTrainedTokenizerBase, entries: int) -> int:
    return max(entries, 1 + max(tokenizer.get_vocab().values(), default=-1))


def special_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """Id of a special token by name; UserError when the tokenizer lacks it."""
    found = tokenizer.get_added_vocab().get(token)
    if found is None:
        raise UserError(
            f"the tokenizer has no {token}; set backbone.special_tokens=[a,b,c] to three of its unused entries"
        )
    return int(found)


def text_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 over the entries that text is made of, with their ids, and over how many there are in all: equal for
    tokenizers whose ids of text mean the same, whatever their special tokens are called."""
    added = tokenizer.get_added_vocab()
    ordinary = sorted((id, entry) for entry, id in tokenizer.get_vocab().items() if entry not in added)
    digest = hashlib.sha256(f"{len(tokenizer)}\0".encode())
    for id, entry in ordinary:
        digest.update(f"{id} {entry}\0".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def check_ids(asked: str | None, tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    """UserError for token ids of another tokenizer; asked: the fingerprint of that which made them, None for a set
    without ids."""
    if asked is not None and asked != (found := text_fingerprint(tokenizer)):
        raise UserError(
            f"{where}: token ids of another tokenizer: fingerprint {asked[:16]} there, {found[:16]} here; tokenize "
            "the text itself (tokenize.source=text), or train with the tokenizer that made these ids"
        )


def train_bpe(texts: Iterable[str], size: int, folder: Path) -> PreTrainedTokenizerBase:
    """Train a byte-level BPE of `size` entries, special tokens included, and save it into `folder` in HF format.

    It is laid out as Qwen2's (normalization, splitting, the name of eos), because that is the class which AutoTokenizer
    picks for a folder whose config says qwen2: so it finds every id as it was.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

    qwen2 = Qwen2Tokenizer().backend_tokenizer
    bpe = Tokenizer(models.BPE())
    bpe.normalizer, bpe.pre_tokenizer, bpe.decoder = qwen2.normalizer, qwen2.pre_tokenizer, qwen2.decoder
    specials = [ENDOFTEXT, "<pad>", "<bos>", *IMAGE_TOKENS]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=size, special_tokens=specials, initial_alphabet=alphabet, show_progress=False),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<bos>",
        eos_token=ENDOFTEXT,
        pad_token="<pad>",
        extra_special_tokens=list(IMAGE_TOKENS),
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """Load a tokenizer folder as its tokenizer.json says, no token added. UserError when there is none, or none with an
    eos token."""
    from transformers import PreTrainedTokenizerFast

    try:
        tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        if not isinstance(error, OSError | ValueError) and type(error) is not Exception:  # tokenizers raises bare ones
            raise
        raise UserError(f"{folder}: no tokenizer that transformers can load: {str(error).splitlines()[0]}") from error
    if tokenizer.eos_token_id is None:
        usual = next((token for token in USUAL_EOS if token in tokenizer.get_vocab()), USUAL_EOS[0])
        raise UserError(
            f"{folder}: its tokenizer has no eos token, which ends every document; name one of its entries in "
            f'tokenizer_config.json, such as "eos_token": "{usual}"'
        )
    return tokenizer


def add_image_tokens(
    source: str | Path, folder: Path, names: list[str] | None = None, family: Family | None = None
) -> PreTrainedTokenizerBase:
    """Copy the tokenizer of `source` into `folder`, three unused entries renamed to <boi> <eoi> <unconditional>.

    names: of the three; by default those that the model's `family` names, or else any other. The renaming goes through
    tokenizer.json, tokenizer_config.json and the chat template alike, so len(tokenizer), and with it every image id,
    stays what it was. Raises UserError when the entries do not exist or the length would change.
    """
    original = load_tokenizer(source)
    vocab = original.get_vocab()
    if all(t in vocab for t in IMAGE_TOKENS):
        original.save_pretrained(folder)
        return original
    known = (t for t in special_token_triples(family) if all(n in vocab for n in t))
    triple = tuple(names) if names else next(known, None)
    if triple is None or len(triple) != 3 or any(n not in vocab for n in triple):
        raise UserError(f"backbone.special_tokens={names}: name three unused entries of the tokenizer in {source}")
    original.save_pretrained(folder)
    renamed = dict(zip(triple, IMAGE_TOKENS, strict=True))
    for file in (
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "special_tokens_map.json",
        "added_tokens.json",
    ):
        path = folder / file
        if path.exists():
            _rename_in(path, renamed)
    tokenizer = load_tokenizer(folder)
    if len(tokenizer) != len(original):
        raise UserError(
            f"renaming {triple} changed the tokenizer's length from {len(original)} to {len(tokenizer)}; choose "
            "other backbone.special_tokens"
        )
    return tokenizer


def _rename_in(path: Path, renamed: dict[str, str]) -> None:
    """Rename whole strings (keys and values) of a JSON file, or all occurrences in a template."""
    if path.suffix != ".json":
        text = path.read_text()
        for old, new in renamed.items():
            text = text.replace(old, new)
        path.write_text(text)
        return

    def walk(node: Any, key: str = "") -> Any:
        if isinstance(node, dict):
            return {renamed.get(k, k): walk(v, k) for k, v in node.items()}
        if isinstance(node, list):
            return [walk(v) for v in node]
        if isinstance(node, str):
            if key == "chat_template":
                for old, new in renamed.items():
                    node = node.replace(old, new)
            return renamed.get(node, node)
        return node

    path.write_text(json.dumps(walk(json.loads(path.read_text())), ensure_ascii=False, indent=2))


def check_codes(codes: np.ndarray, codebook_size: int, where: str) -> None:
    """UserError when a code lies outside the codebook."""
    if codes.size and int(codes.max()) >= codebook_size:
        raise UserError(
            f"{where}: code {int(codes.max())} is outside the codebook of {codebook_size}; the shards come from "
            "another VQ"
        )
