"""A small random model with its vocabulary, and an HF folder of them, for the tests of generation and evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig as HFConfig
from transformers import AutoModelForCausalLM, PreTrainedModel

from liquid_train.data.tasks.t2i import DEFAULT_PROMPT
from liquid_train.files import package_path
from liquid_train.image_tokenizer.kinds.taming.network import TamingVQGAN
from liquid_train.image_tokenizer.settings import VQSettings
from liquid_train.model.backbone import ModelCard
from liquid_train.vocabulary import Vocabulary, train_bpe

TEXT = [
    "a red circle",
    "a blue rectangle",
    DEFAULT_PROMPT,
    "\nwhat color is the shape? teal",
    "\nis there a triangle? yes no",
    "The caption of this image is:",
]
CODEBOOK = 1024
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "qwen2": {"num_key_value_heads": 2},
    "llama": {"num_key_value_heads": 4},
    "gemma2": {
        "num_key_value_heads": 2,
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "sliding_window": 24,
        "final_logit_softcapping": 2.0,
        "attn_logit_softcapping": 5.0,
    },
}


def tiny(
    folder: Path, architecture: str = "qwen2", codebook_size: int = CODEBOOK, seed: int = 0
) -> tuple[PreTrainedModel, Vocabulary]:
    """A model of two layers with large random weights, so that its answers depend on everything it reads."""
    tokenizer = train_bpe(TEXT, 300, folder)
    vocabulary = Vocabulary(tokenizer, codebook_size, len(tokenizer) + codebook_size + 5)
    config = HFConfig.for_model(
        architecture,
        vocab_size=vocabulary.rows,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        initializer_range=0.25,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **ARCHITECTURES[architecture],
    )
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config).eval().requires_grad_(False), vocabulary


def vq() -> TamingVQGAN:
    """The image tokenizer of the package."""
    settings = VQSettings()
    return TamingVQGAN.from_files(package_path(settings.config), package_path(settings.checkpoint))


def save(folder: Path, *, fingerprint: str | None = None, grid: tuple[int, ...] = (8, 8)) -> Path:
    """The tiny model as liquid train writes it: an HF folder with a card that names the VQ of the package."""
    model, vocabulary = tiny(folder)
    model.save_pretrained(folder)
    settings = VQSettings()
    card = ModelCard(
        vocabulary.image_start,
        CODEBOOK,
        fingerprint or vq().fingerprint,
        settings.config,
        settings.checkpoint,
        list(grid),
        DEFAULT_PROMPT,
    )
    card.write(folder)
    return folder
