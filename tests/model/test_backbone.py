"""Pretrained folders: image rows added, text untouched, special tokens renamed without moving an id; schedules; the
log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from liquid_train.data.document_plan import DocumentPlan
from liquid_train.errors import UserError
from liquid_train.model import backbone
from liquid_train.model.backbone import ModelCard
from liquid_train.model.embedding_init import fill_image_rows
from liquid_train.model.settings import BackboneConfig
from liquid_train.vocabulary import Vocabulary, add_image_tokens

UNUSED = ["<unused0>", "<unused1>", "<unused2>"]


def pretrained(folder: Path, family: str, tied: bool, spare_rows: int, **more: Any) -> Path:
    """A small HF folder as a hub would have it: a BPE with unused entries, random weights, rows beyond the
    tokenizer. more: fields of its config."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.train_from_iterator(
        ["hello world"],
        trainers.BpeTrainer(vocab_size=280, special_tokens=["<bos>", "<eos>", *UNUSED], show_progress=False),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<bos>", eos_token="<eos>")
    tokenizer.save_pretrained(folder)
    fields = dict(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
    )
    config = AutoConfig.for_model(
        family,
        vocab_size=len(tokenizer) + spare_rows,
        tie_word_embeddings=tied,
        initializer_range=0.2,
        **fields,
        **more,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", ["qwen2", "llama", "gemma", "gemma2"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("spare_rows", [0, 100])
def test_extension_leaves_text_logits_bit_equal(tmp_path: Path, family: str, tied: bool, spare_rows: int) -> None:
    folder = pretrained(tmp_path / "hub", family, tied, spare_rows)
    settings = BackboneConfig(path=str(folder), init="pretrained")
    tokenizer = add_image_tokens(folder, tmp_path / "renamed")
    config = backbone.model_config(settings, 0)
    old_rows = config.vocab_size
    vocabulary = Vocabulary(tokenizer, 64, old_rows + 64)
    model = backbone.build(config, vocabulary)
    backbone.materialize(model, torch.device("cpu"))
    backbone.fill_from_folder(model, folder)
    fill_image_rows(model, vocabulary, "mean", torch.randn(64, 5), seed=1)
    assert vocabulary.image_start == len(tokenizer) == old_rows - spare_rows
    ids = torch.randint(0, vocabulary.text_size, (1, 20))
    ours = model(input_ids=ids, use_cache=False, document_plan=DocumentPlan.from_lengths([20])).logits
    plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")(
        input_ids=ids, use_cache=False
    ).logits
    torch.testing.assert_close(
        ours[..., : vocabulary.text_size], plain[..., : vocabulary.text_size], atol=1e-5, rtol=1e-5
    )
    before, after = rows(AutoModelForCausalLM.from_pretrained(folder)), rows(model)
    assert torch.equal(after[: vocabulary.text_size], before[: vocabulary.text_size])
    image = after[vocabulary.image_start : vocabulary.image_end]
    assert (image - before[: vocabulary.text_size].mean(0)).abs().max() < 0.05, (
        "all image rows, spare ones too, start at the mean"
    )
    assert len(image.unique(dim=0)) == 64


def rows(model: Any) -> torch.Tensor:
    return model.get_input_embeddings().weight.detach()


def test_renaming_keeps_every_id(tmp_path: Path) -> None:
    folder = pretrained(tmp_path / "hub", "qwen2", True, 0)
    old = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    renamed = add_image_tokens(folder, tmp_path / "renamed")
    assert [renamed.convert_tokens_to_ids(t) for t in ("<boi>", "<eoi>", "<unconditional>")] == [
        e["id"] for e in old if e["content"] in UNUSED
    ]
    with pytest.raises(ValueError, match="three unused entries"):
        add_image_tokens(folder, tmp_path / "other", ["<a>", "<b>", "<c>"])


def test_random_rows_do_not_depend_on_how_they_are_cut() -> None:
    whole = backbone.random_rows(("w", 0), 0, 3000, torch.Size([4]), 0.02)
    parts = [
        backbone.random_rows(("w", 0), a, b - a, torch.Size([4]), 0.02) for a, b in ((0, 7), (7, 1500), (1500, 3000))
    ]
    assert torch.equal(whole, torch.cat(parts)) and whole.std().item() == pytest.approx(0.02, rel=0.05)


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    folder = pretrained(tmp_path / "hub", "qwen2", True, 0)
    with pytest.raises(ValueError, match="no .*safetensors"):
        backbone.fill_from_folder(torch.nn.Linear(1, 1), tmp_path)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no liquid.json"):
        backbone.load_for_inference(folder)


@pytest.mark.parametrize("named", [{"family": "my_module.Family"}, {"vq_kind": "my_module.Tokenizer"}])
def test_a_model_from_elsewhere_does_not_choose_what_is_imported(tmp_path: Path, named: dict[str, str]) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    card = {"image_start": 1, "codebook_size": 2, "vq_fingerprint": "x", "vq_config": "c", "vq_checkpoint": "w"}
    (folder / "liquid.json").write_text(json.dumps({**card, "grid": [1, 1], "prompt": "", **named}))
    with pytest.raises(UserError, match=r"liquid\.json: names my_module\.\w+, code that would be imported"):
        ModelCard.read(folder)
    (tmp_path / "COMMIT.json").write_text("{}")  # a checkpoint of a run: what trained it may be imported again
    assert next(iter(named.values())) in (ModelCard.read(folder).family, ModelCard.read(folder).vq_kind)


@pytest.mark.parametrize(("end", "usual"), [("<x3>", "</s>"), ("<eos>", "<eos>")])
def test_a_tokenizer_without_eos_is_refused_before_training(tmp_path: Path, end: str, usual: str) -> None:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.train_from_iterator(["hello"], trainers.BpeTrainer(special_tokens=[*UNUSED, end], show_progress=False))
    PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=end).save_pretrained(tmp_path / "a")
    with pytest.raises(UserError, match=f'a: its tokenizer has no eos token, .* "eos_token": "{usual}"'):
        add_image_tokens(tmp_path / "a", tmp_path / "b", UNUSED)
    assert not (tmp_path / "b").exists()
