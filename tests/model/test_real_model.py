"""A published checkpoint given image rows: what it says about text stays bit for bit, and what training writes is plain
Hugging Face.

Run them with `pytest -m real_model`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from liquid_train.checkpoint import folder as checkpoint
from liquid_train.data.document_plan import DocumentPlan
from liquid_train.model import backbone
from liquid_train.model.settings import BackboneConfig
from liquid_train.vocabulary import IMAGE_TOKENS, Vocabulary, load_tokenizer
from tests.distributed.running import make_data, train
from tests.real_model import smollm2

pytestmark = [pytest.mark.real_model, pytest.mark.slow]
TEXT_ROWS, CODES, TABLE = 49152, 1024, "model.embed_tokens.weight"
TEXT = "The capital of France is Paris. A red circle lies next to a blue triangle."
NO_CHANGE = "optimizer.lr=1e-60"  # positive, as it must be, and zero in fp32


@pytest.fixture(scope="module")
def published() -> Path:
    try:
        return smollm2()
    except ValueError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("real"))


def extended(root: Path, run: str, published: Path, *overrides: str) -> tuple[list[dict[str, Any]], Path]:
    """(metrics, model/ folder of the last checkpoint) of a short run from the published weights."""
    start = [
        "backbone=folder",
        f"backbone.path={published}",
        "data.global_batch=2",
        "train.micro_batch=1",
        "train.batch_digest=true",
        "schedule=constant",
    ]
    return train(root, run, *start, *overrides), checkpoint.model_folder(root / run)


@pytest.fixture(scope="module")
def untouched(root: Path, published: Path) -> tuple[list[dict[str, Any]], Path]:
    """One rank, one step that moves nothing: the extended model as training begins with it."""
    return extended(
        root, "untouched", published, "launch.nproc=1", "train.steps=1", NO_CHANGE, "backbone.image_init=codebook"
    )


def logits(folder: Path, ids: Tensor) -> Tensor:
    """[1, tokens, rows] of plain transformers in fp32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def rows(folder: Path) -> Tensor:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return file.get_tensor(TABLE)


def test_the_published_model_speaks_english(published: Path) -> None:
    """The conversion is right, or everything below would say little."""
    tokenizer = AutoTokenizer.from_pretrained(published)
    prompt = tokenizer("The capital of France is", return_tensors="pt").input_ids
    assert tokenizer.decode(logits(published, prompt)[0, -1].argmax()) == " Paris"
    config = json.loads((published / "config.json").read_text())
    assert "quantization_config" not in config and config["vocab_size"] == len(tokenizer) == TEXT_ROWS


def test_text_is_as_published_bit_for_bit(published: Path, untouched: tuple[list[dict[str, Any]], Path]) -> None:
    _, folder = untouched
    before, after = rows(published), rows(folder)
    assert len(before) == TEXT_ROWS and len(after) == TEXT_ROWS + CODES
    assert torch.equal(after[:TEXT_ROWS], before)
    image = after[TEXT_ROWS:]
    assert len(image.unique(dim=0)) == CODES
    spread = (before - before.mean(0)).square().sum(1).mean().sqrt().item()
    assert (image - before.mean(0)).square().sum(1).mean().sqrt().item() == pytest.approx(spread, rel=1e-3)
    ids = torch.cat(
        [load_tokenizer(published)(TEXT, return_tensors="pt").input_ids, torch.arange(0, TEXT_ROWS, 997).unsqueeze(0)],
        1,
    )
    plain, ours = logits(published, ids), logits(folder, ids)
    assert torch.equal(ours[..., :TEXT_ROWS], plain)


def test_no_id_of_the_tokenizer_moves(published: Path, untouched: tuple[list[dict[str, Any]], Path]) -> None:
    before, after = (AutoTokenizer.from_pretrained(folder) for folder in (published, untouched[1]))
    old, new = before.get_vocab(), after.get_vocab()
    taken_over = ("<repo_name>", "<reponame>", "<file_sep>")
    assert (
        len(after) == TEXT_ROWS
        and [new.pop(t) for t in IMAGE_TOKENS] == [old.pop(t) for t in taken_over]
        and new == old
    )
    assert after(TEXT).input_ids == before(TEXT).input_ids and after.chat_template == before.chat_template


def test_two_ranks_train_it_and_transformers_reads_it(
    root: Path, published: Path, untouched: tuple[list[dict[str, Any]], Path]
) -> None:
    lines, folder = extended(
        root,
        "trained",
        published,
        "launch.nproc=2",
        "train.steps=2",
        "optimizer.lr=1e-4",
        "backbone.image_init=codebook",
    )
    first, same = lines[0], untouched[0][0]
    assert first["batch_digest"] == same["batch_digest"]
    assert first["loss"] == pytest.approx(same["loss"], abs=1e-4) and first["grad_norm"] == pytest.approx(
        same["grad_norm"], rel=1e-3
    )
    moved = (rows(folder) - rows(untouched[1])).abs().amax(1)
    assert (moved[TEXT_ROWS:] > 0).all(), "every image row is trained"
    tokenizer = load_tokenizer(folder)
    codes = torch.arange(0, CODES, 16)[None] + TEXT_ROWS
    boi, eoi = (torch.tensor([[tokenizer.convert_tokens_to_ids(t)]]) for t in ("<boi>", "<eoi>"))
    ids = torch.cat([tokenizer(TEXT, return_tensors="pt").input_ids, boi, codes, eoi], 1)
    plain = logits(folder, ids)
    torch.testing.assert_close(packed_logits(published, folder, ids), plain, atol=1e-4, rtol=1e-4)


def packed_logits(published: Path, folder: Path, ids: Tensor) -> Tensor:
    """[1, tokens, rows] of the model as training builds it, with attention inside packed documents."""
    config = backbone.model_config(BackboneConfig(path=str(published)), 0)
    model = backbone.build(config, Vocabulary(load_tokenizer(folder), CODES, TEXT_ROWS + CODES))
    backbone.materialize(model, torch.device("cpu"))
    backbone.fill_from_folder(model, folder)
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False, document_plan=DocumentPlan.from_lengths([ids.shape[1]])).logits
