"""A run's tokenizer, trained on its texts or taken from a folder and extended by image tokens, and its vocabulary."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from liquid_train.config.schema import TrainJob
from liquid_train.data.shards import ShardSet
from liquid_train.data.tasks.i2t import CAPTION_LEAD
from liquid_train.errors import UserError
from liquid_train.model.backbone import model_config, start_card
from liquid_train.model.families import family_of
from liquid_train.text_normalizer import normalize_text
from liquid_train.vocabulary import Vocabulary, add_image_tokens, load_tokenizer, text_size, train_bpe


def make_tokenizer(config: TrainJob, sets: dict[str, ShardSet], folder: Path) -> None:
    """Write the run's tokenizer to `folder`, in Hugging Face format."""
    settings = config.backbone
    source = settings.tokenizer or settings.path
    if source is None:
        train_bpe(training_texts(config, sets), settings.tokenizer_size, folder)
    else:
        model_type = model_config(settings, settings.tokenizer_size).model_type
        add_image_tokens(source, folder, settings.special_tokens, family_of(model_type))


def open_vocabulary(config: TrainJob, folder: Path, codebook_size: int) -> Vocabulary:
    """The vocabulary of the tokenizer in `folder`: the backbone's own embedding rows, and one more for each code.

    A published backbone may have more rows than its tokenizer has entries (Qwen2.5 has padding), and many more than a
    small BPE. Image ids still start after the tokenizer's last; rows after the last image id are never used.
    A folder that has image rows keeps the rows that it has.
    Raises UserError when the tokenizer has more ids than the backbone has rows, or is not that of the image rows.
    """
    tokenizer = load_tokenizer(folder)
    ids = text_size(tokenizer)
    rows = model_config(config.backbone, ids).vocab_size
    if card := start_card(config.backbone):
        if ids != card.image_start:
            raise UserError(
                f"backbone.path={config.backbone.path}: its image ids start at {card.image_start}, the tokenizer has "
                f"{ids} ids; leave backbone.tokenizer out"
            )
        return Vocabulary(tokenizer, codebook_size, rows)
    if rows < ids:
        key = "backbone.path" if config.backbone.path else "backbone.architecture.vocab_size"
        raise UserError(
            f"{key}: the backbone has {rows} embedding rows, fewer than the {ids} ids of the "
            "tokenizer; give the tokenizer made "
            "for it"
        )
    return Vocabulary(tokenizer, codebook_size, rows + codebook_size)


def training_texts(config: TrainJob, sets: dict[str, ShardSet]) -> Iterable[str]:
    """What a tokenizer is trained on: the training sources' texts, captions, prompts and questions."""
    for shards in {s.path: s for s in sets.values()}.values():
        for sample in shards:
            if "text" in sample:
                yield normalize_text(sample["text"])
            # as often as they occur in training, because merges are chosen by frequency
            if "text" in sample and "codes" in sample:
                yield from map(normalize_text, config.data.prompts)
                yield CAPTION_LEAD
            for question in sample["info"].get("questions") or ():
                yield "\n" + question["question"]
                yield from (" " + answer for answer in question["answers"])
