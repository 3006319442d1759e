"""Tiny models of published architectures with random weights, saved as Hugging Face folders: judges of images and
texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipImageProcessorPil,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    T5Config,
)

from liquid_train.vocabulary import train_bpe

TEXT = [
    "USER: does this figure show a red circle? please answer yes or no. ASSISTANT: Yes No",
    "A photo depicts a blue rectangle, a teal triangle",
]
TEMPLATE = (
    "{% for m in messages %}USER: {% for c in m['content'] %}{% if c['type'] == 'image' %}<image>\n{% else %}{{ "
    "c['text'] }}{% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)
VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
PIXELS = {"height": 28, "width": 28}


def tokenizer(folder: Path) -> Any:
    made = train_bpe(TEXT, 300, folder)
    made.add_tokens(["<image>"], special_tokens=True)
    return made


def llava(folder: Path) -> Path:
    """A decoder with a chat template."""
    words = tokenizer(folder / "tokenizer")
    image = words.convert_tokens_to_ids("<image>")
    text = LlamaConfig(
        vocab_size=len(words) + 3,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        pad_token_id=words.pad_token_id,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(**VISION), text_config=text, image_token_id=image, image_seq_length=4
        )  # type: ignore[call-arg]
    )
    louder(model)
    prepare = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=PIXELS)
    processor = LlavaProcessor(
        prepare,
        words,
        patch_size=14,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def blip2_t5(folder: Path) -> Path:
    """An encoder-decoder without a chat template."""
    words = tokenizer(folder / "tokenizer")
    image = words.convert_tokens_to_ids("<image>")
    special = {
        "decoder_start_token_id": words.pad_token_id,
        "pad_token_id": words.pad_token_id,
        "eos_token_id": words.eos_token_id,
    }
    text = T5Config(vocab_size=len(words), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, **special)
    qformer: Any = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "encoder_hidden_size": 16,
        "vocab_size": 40,
    }
    torch.manual_seed(0)
    model = Blip2ForConditionalGeneration(
        Blip2Config(
            vision_config=VISION,
            qformer_config=qformer,
            text_config=text.to_dict(),
            num_query_tokens=3,
            image_token_index=image,
        )  # type: ignore[arg-type]
    )
    louder(model)
    model.save_pretrained(folder)
    Blip2Processor(BlipImageProcessorPil(size=PIXELS), words, num_query_tokens=3).save_pretrained(folder)
    return folder


def clip(folder: Path) -> Path:
    words = tokenizer(folder / "tokenizer")
    text = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": len(words),
        "max_position_embeddings": 40,
        "eos_token_id": words.eos_token_id,
    }
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=12))  # type: ignore[arg-type]
    louder(model)
    model.save_pretrained(folder)
    CLIPProcessor(CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=PIXELS), words).save_pretrained(folder)
    return folder


@torch.no_grad()
def louder(model: torch.nn.Module) -> None:
    """Weights so large that an answer depends on the image."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.copy_(torch.randn_like(parameter) * 0.3)
