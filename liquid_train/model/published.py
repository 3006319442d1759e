"""Models with image rows that this project has not written: Liquid_V1_7B as it is published, and what its training
script (Hugging Face's Trainer) writes. They have no liquid.json."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from transformers import AutoConfig

from liquid_train.data.tasks.t2i import DEFAULT_PROMPT
from liquid_train.errors import UserError
from liquid_train.image_tokenizer.opening import open_image_tokenizer
from liquid_train.image_tokenizer.settings import AUTO, TAMING, VQSettings
from liquid_train.model.backbone import CARD, ModelCard
from liquid_train.vocabulary import IMAGE_TOKENS, Vocabulary, load_tokenizer


def published(folder: Path, vq: VQSettings | None, where: str) -> tuple[Vocabulary, ModelCard]:
    """Vocabulary and card of such a folder; where: how messages name it.

    Image ids start after the tokenizer's last, <boi> <eoi> <unconditional> are entries of the tokenizer, the VQ is the
    one given, images are as large as its yaml says, and the prompt's suffix is the published one. UserError where that
    does not fit together.
    """
    if vq is None or AUTO in (vq.config, vq.checkpoint):
        raise UserError(
            f"{where}: no {CARD} there, so it does not say which VQ it was trained with; give one that liquid train "
            "wrote, or vq=chameleon vq.checkpoint=FILE for a published checkpoint"
        )
    tokenizer = load_tokenizer(folder)
    for token in IMAGE_TOKENS:
        if token not in tokenizer.get_vocab():
            raise UserError(f"{where}: its tokenizer has no {token}; it is no checkpoint of this kind")
    vq = replace(vq, kind=TAMING if vq.kind == AUTO else vq.kind)
    image_tokenizer = open_image_tokenizer(vq, ("decoder",))
    rows = int(AutoConfig.from_pretrained(folder, local_files_only=True).vocab_size)
    vocabulary = Vocabulary(tokenizer, image_tokenizer.codebook_size, rows)
    if vocabulary.image_end > rows:
        raise UserError(
            f"vq.config={vq.config}: {vocabulary.codebook_size} codes after {vocabulary.text_size} text ids, but the "
            f"model has {rows} rows"
        )
    side = image_tokenizer.resolution // image_tokenizer.downsampling
    card = ModelCard(
        vocabulary.image_start,
        vocabulary.codebook_size,
        image_tokenizer.fingerprint,
        vq.config,
        vq.checkpoint,
        [side, side],
        DEFAULT_PROMPT,
        vq_kind=vq.kind,
        vq_options=vq.options,
    )
    return vocabulary, card
