"""VQAScore: how probable another model finds the answer "Yes" to the question whether an image shows a text (Lin et
al. 2024, arXiv 2404.01291). Any model of transformers that reads an image and a question and writes text: decoders
(LLaVA, Qwen-VL, Idefics, ...) and encoder-decoders (BLIP-2 and InstructBLIP with T5, Florence), from a local folder.

The probability is the product over the answer's tokens, as the tokenizer encodes the answer alone, with its end left
open. The question goes through the model's chat template where it has one, else as it is. Images are prepared by the
model's own processor.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from evals.distances.features import folder_weights
from evals.judges.images import Images
from evals.settings import JudgeConfig
from liquid_train.errors import UserError

Row = dict[str, Tensor]


@dataclass(frozen=True)
class Judge:
    """A model with its processor. answer: token ids. start: what an encoder-decoder's answers begin with, None for a
    decoder."""

    model: Any
    processor: Any
    answer: list[int]
    start: int | None
    name: str
    weights: str

    def prepare(self, pixels: np.ndarray, question: str) -> Row:
        """pixels uint8 [H, W, 3] -> what the model takes, one row."""
        image = Image.fromarray(pixels)
        if self.processor.chat_template:
            content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
            return dict(
                self.processor.apply_chat_template(
                    [{"role": "user", "content": content}],
                    add_generation_prompt=True,
                    tokenize=True,
                    return_dict=True,
                    return_tensors="pt",
                )
            )
        return dict(self.processor(images=image, text=question, return_tensors="pt"))

    @torch.inference_mode()
    def probabilities(self, rows: Sequence[Row]) -> np.ndarray:
        """P(answer) of rows of one shape, fp64 [n]. No row is padded: what padding does differs from model to model."""
        target = torch.tensor([self.answer] * len(rows))
        batch = {
            key: torch.cat([row[key] for row in rows]) for key, value in rows[0].items() if isinstance(value, Tensor)
        }
        if self.start is None:
            prompt = batch["input_ids"].shape
            batch = {
                key: with_continuation(key, value, target) if value.shape == prompt else value
                for key, value in batch.items()
            }
            first = prompt[1] - 1
        else:
            begin = torch.full((len(rows), 1), self.start)
            batch["decoder_input_ids"], first = torch.cat([begin, target[:, :-1]], dim=1), 0
        moved = {
            key: v.to(self.model.device, self.model.dtype if v.is_floating_point() else v.dtype)
            for key, v in batch.items()
        }
        logits = self.model(**moved).logits[:, first : first + len(self.answer)]
        chances = logits.double().log_softmax(-1).cpu().gather(2, target[:, :, None])
        return chances.sum(dim=(1, 2)).exp().numpy()


def with_continuation(key: str, prompt: Tensor, answer: Tensor) -> Tensor:
    """A tensor over the prompt's tokens [n, L] -> [n, L + A - 1]: the answer after it but for its last token, which is
    only predicted.
    Masks count it; token types are those of text, 0."""
    added = answer[:, :-1]
    filled = added if key == "input_ids" else torch.full_like(added, int(key == "attention_mask"))
    return torch.cat([prompt, filled.to(prompt.dtype)], dim=1)


def open_judge(config: JudgeConfig, device: torch.device) -> Judge:
    """Raises UserError for a folder that holds no such model, or where the model cannot be asked in this way: it is
    tried out once."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    path = Path(str(config.model))
    weights = folder_weights(path, "vqascore.model", "a visual question answering model")
    loaded: Any
    try:
        processor = AutoProcessor.from_pretrained(path, local_files_only=True)
        loaded = AutoModelForImageTextToText.from_pretrained(
            path, local_files_only=True, dtype="auto", output_loading_info=True
        )
    except (OSError, ValueError, ImportError, KeyError, SafetensorError) as error:
        raise UserError(
            f"vqascore.model={path}: cannot be opened as a model of images and text to text: {error}"
        ) from error
    model, loading = loaded
    if loading["missing_keys"]:
        raise UserError(
            f"vqascore.model={path}: {len(loading['missing_keys'])} weights of {type(model).__name__} are not there; "
            "give a whole model's folder"
        )
    text = model.config.get_text_config()
    start = None
    if model.config.is_encoder_decoder or text.is_encoder_decoder:
        found = (getattr(c, "decoder_start_token_id", None) for c in (model.generation_config, model.config, text))
        start = next((id for id in found if id is not None), text.pad_token_id)
    answer = processor.tokenizer(config.answer, add_special_tokens=False).input_ids
    if not answer:
        raise UserError(f"vqascore.answer={config.answer}: no token of it")
    name = f"{type(model).__name__} {path.name}: P({config.answer!r}) of {config.question!r}"
    judge = Judge(model.eval().to(device), processor, answer, start, name, weights)
    try:
        grey = np.full((64, 64, 3), 128, np.uint8)
        judge.probabilities([judge.prepare(grey, config.question.replace("{text}", "a shape"))])
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RuntimeError) as error:
        raise UserError(
            f"vqascore.model={path}: {type(model).__name__} cannot be asked about an image: {error}"
        ) from error
    return judge


def asked(
    judge: Judge, data: Images, config: JudgeConfig, own: list[int], progress: Callable[[int], None]
) -> Iterator[tuple[list[int], np.ndarray]]:
    """(numbers of images, P of each): rows of one shape are computed together as soon as a batch is full."""
    waiting: dict[Any, list[tuple[int, Row]]] = defaultdict(list)
    done = 0
    for n in own:
        row = judge.prepare(data.pixels[n], config.question.replace("{text}", data.texts[n]))
        shape = tuple((key, value.shape[1:]) for key, value in row.items() if isinstance(value, Tensor))
        waiting[shape].append((n, row))
        if len(waiting[shape]) == config.batch_size:
            batch = waiting.pop(shape)
            yield [n for n, _ in batch], judge.probabilities([row for _, row in batch])
            done += len(batch)
            progress(done)
    for batch in waiting.values():
        yield [n for n, _ in batch], judge.probabilities([row for _, row in batch])
        done += len(batch)
        progress(done)
