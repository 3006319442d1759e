"""Conversations, images inside prompts, streaming, sizes, null prompts, and checkpoints of the published layout."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from liquid_train.data.sequence_pieces import encode_text
from liquid_train.data.sequences import build_sequence
from liquid_train.data.tasks.chat import Chat, conversation_ids, end_of_turn
from liquid_train.data.tasks.t2i import DEFAULT_PROMPT
from liquid_train.data.tasks.text import Text
from liquid_train.generate.image_sampler import Sampling, sample_images
from liquid_train.generate.job import run
from liquid_train.generate.request import parts_of
from liquid_train.generate.session import Session, open_model, open_vq
from liquid_train.generate.settings import GenerateJob
from liquid_train.generate.text_sampler import Streamed, complete_ids
from liquid_train.image_tokenizer.settings import VQSettings
from liquid_train.model.backbone import ModelCard
from tests.tiny_model import save, tiny
from tests.tiny_vq import CODEBOOK, make_vq

AUTO = VQSettings("auto", "auto")
TEMPLATE = (
    "{% for m in messages %}<bos>{{ m.role }}\n{{ m.content }}<pad>\n{% endfor %}{% if add_generation_prompt "
    "%}<bos>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    model, vocabulary = tiny(tmp_path_factory.mktemp("model"))
    vocabulary.tokenizer.chat_template = TEMPLATE
    return model, vocabulary


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("model"), grid=(2, 3))


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> tuple[Path, VQSettings]:
    """A Gemma folder as Liquid_V1_7B is published: no liquid.json, the three tokens by name, image rows right after
    the tokenizer."""
    base = tmp_path_factory.mktemp("published")
    config, weights = (text.split("=")[1] for text in make_vq(base / "vq"))
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    specials = ["<pad>", "<eos>", "<bos>", "<boi>", "<eoi>", "<unconditional>"]
    bpe.train_from_iterator(
        ["a red circle", DEFAULT_PROMPT],
        trainers.BpeTrainer(vocab_size=290, special_tokens=specials, show_progress=False),
    )
    bpe.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")
    tokenizer.save_pretrained(base / "model")
    torch.manual_seed(0)
    gemma = AutoConfig.for_model(
        "gemma",
        vocab_size=len(tokenizer) + CODEBOOK,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        initializer_range=0.4,
        max_position_embeddings=512,
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
    )
    AutoModelForCausalLM.from_config(gemma).save_pretrained(base / "model")
    return base / "model", VQSettings(config, weights)


@torch.no_grad()
def published_loop(folder: Path, prompt: str, codes: int, guidance: float) -> list[int]:
    """What the published program does, greedily: both prompts as one padded batch of text, the whole prefix at every
    step, ids - len(tokenizer)."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    batch = tokenizer([prompt + DEFAULT_PROMPT + "<boi>", "<unconditional><boi>"], return_tensors="pt", padding=True)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    for _ in range(codes):
        position = (mask.cumsum(-1) - 1).clamp(min=0)
        cond, uncond = model(input_ids=ids, attention_mask=mask, position_ids=position).logits[:, -1]
        guided = uncond + (cond - uncond) * guidance
        guided[: len(tokenizer)] = float("-inf")
        ids = torch.cat([ids, guided.argmax().expand(2, 1)], 1)
        mask = torch.cat([mask, torch.ones(2, 1, dtype=mask.dtype)], 1)
    return [int(i) - len(tokenizer) for i in ids[0, -codes:]]


def test_a_published_checkpoint_draws_as_the_published_program(published):
    folder, vq = published
    session = open_model(folder, "cpu", vq=vq)
    assert (
        session.grid == (8, 8)
        and session.card.prompt == DEFAULT_PROMPT
        and session.vocabulary.codebook_size == CODEBOOK
    )
    codes = sample_images(
        session.model, session.vocabulary, ["a red circle"], seeds=[0], grid=(3, 4), guidance=7.0, temperature=0
    )
    assert codes.ravel().tolist() == published_loop(folder, "a red circle", 12, 7.0)
    assert open_vq(session, vq, ("decoder",)).fingerprint == session.card.vq_fingerprint


def test_a_published_checkpoint_needs_a_vq_that_fits(published, tmp_path):
    folder, _ = published
    with pytest.raises(ValueError, match="vq=chameleon"):
        open_model(folder, "cpu", vq=AUTO)
    with pytest.raises(ValueError, match="1024 codes after"):
        open_model(folder, "cpu", vq=VQSettings())


def test_our_export_draws_the_same_under_the_published_program(published, tmp_path):
    """The layout of an export is the published one; liquid.json next to it disturbs nobody."""
    source, vq = published
    session = open_model(source, "cpu", vq=vq)
    session.model.save_pretrained(tmp_path)
    session.vocabulary.tokenizer.save_pretrained(tmp_path)
    session.card.write(tmp_path)
    ours = open_model(tmp_path, "cpu")
    codes = sample_images(ours.model, ours.vocabulary, ["a red"], seeds=[0], grid=(2, 4), guidance=3.0, temperature=0)
    assert codes.ravel().tolist() == published_loop(tmp_path, "a red", 8, 3.0)


def test_images_inside_a_prompt_and_greedy_tokens_of_transformers(qwen):
    model, vocabulary = qwen
    tokenizer = vocabulary.tokenizer
    codes = {Path("a.png"): np.arange(6).reshape(2, 3), Path("b c.png"): np.arange(4).reshape(2, 2)}
    ids = Text().continued(parts_of("is <image:a.png> like <image:b c.png>? <eos>", codes), tokenizer)
    first, second = (
        [vocabulary.boi, *(grid.ravel() + vocabulary.image_start), vocabulary.eoi] for grid in codes.values()
    )
    text = [encode_text(tokenizer, part) for part in ("is ", " like ", "? <eos>")]
    assert ids == [tokenizer.bos_token_id, *text[0], *first, *text[1], *second, *text[2]]
    pieces: list[str] = []
    streamed = Streamed(vocabulary, pieces.append)
    found = complete_ids(model, vocabulary, [ids], seeds=[0], max_new_tokens=12, on_token=streamed)[0]
    expected = model.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids)),
        do_sample=False,
        max_new_tokens=12,
        eos_token_id=vocabulary.eos,
        pad_token_id=vocabulary.pad,
        suppress_tokens=list(range(vocabulary.text_size, vocabulary.rows)),
    )[0, len(ids) :].tolist()
    assert streamed.tokens == [t for t in expected if t != vocabulary.eos]
    assert found.startswith("".join(pieces)) and len(pieces) > 1


def test_a_turn_is_what_training_shows_before_an_answer(qwen):
    model, vocabulary = qwen
    codes = np.arange(6).reshape(2, 3)
    messages = [{"role": "user", "content": "what is <image>?"}, {"role": "assistant", "content": "a circle"}]
    document, labels = build_sequence({"messages": messages, "codes": codes}, "chat", vocabulary.tokenizer)
    asked = Chat().continued(parts_of("what is <image:x.png>?", {Path("x.png"): codes}), vocabulary.tokenizer)
    assert (
        asked == document[: len(asked)].tolist() and (labels[: len(asked)] == -100).all() and labels[len(asked)] != -100
    )
    more = [*messages, {"role": "user", "content": "and why?"}, {"role": "assistant", "content": "it is round"}]
    document, labels = build_sequence({"messages": more, "codes": codes}, "chat", vocabulary.tokenizer)
    turns = [("user", ["what is ", codes, "?"]), ("assistant", ["a circle"]), ("user", ["and why?"])]
    asked = conversation_ids(turns, vocabulary.tokenizer)
    assert asked == document[: len(asked)].tolist() and labels[len(asked) - 1] == -100 and labels[len(asked)] != -100
    assert end_of_turn(vocabulary.tokenizer) == labels[labels != -100][-1]
    vocabulary.tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        Chat().continued(parts_of("x", {}), vocabulary.tokenizer)
    vocabulary.tokenizer.chat_template = TEMPLATE


def test_a_turn_ends_where_the_template_ends_it(qwen, monkeypatch):
    model, vocabulary = qwen
    end = end_of_turn(vocabulary.tokenizer)
    script = iter([encode_text(vocabulary.tokenizer, "y")[0], end])
    monkeypatch.setattr(
        "liquid_train.generate.text_sampler.pick", lambda logits, *_: torch.full(logits.shape[:-1], next(script))
    )
    assert complete_ids(model, vocabulary, [[2, 3]], seeds=[0], sampling=Sampling(1.0), end=end) == ["y"]


def session_with(folder: Path, *, force: bool = False, **changes) -> Session:
    session = open_model(folder, "cpu", force=force)
    return dataclasses.replace(session, card=dataclasses.replace(session.card, **changes))


def test_sizes(folder):
    plain = session_with(folder)
    assert plain.image_size(None, 8) == plain.image_size("24x16", 8) == ((2, 3), None)
    with pytest.raises(ValueError, match="size=32x16: the model was trained on 24x16"):
        plain.image_size("32x16", 8)
    with pytest.raises(ValueError, match="multiples of 8"):
        plain.image_size("20x16", 8)
    many = session_with(folder, sizes=[[24, 16], [16, 24]])
    assert many.image_size("16x24", 8) == ((3, 2), (16, 24)) and many.image_size(None, 8) == ((2, 3), (24, 16))
    with pytest.raises(ValueError, match="trained on 24x16, 16x24"):
        many.image_size("32x32", 8)
    assert session_with(folder, force=True).image_size("32x16", 8) == ((2, 4), (32, 16))


def test_a_stated_size_and_another_null_prompt_reach_the_model(qwen, monkeypatch):
    model, vocabulary = qwen
    read: list[list[int]] = []
    from liquid_train.generate import image_sampler as sampler

    original = sampler.left_padded
    monkeypatch.setattr(sampler, "left_padded", lambda rows, *a: (read.extend(map(list, rows)), original(rows, *a))[1])
    sample_images(model, vocabulary, ["a red"], seeds=[0], grid=(1, 2), guidance=2.0, size=(16, 24))
    sample = {"text": "a red", "codes": np.zeros((1, 2)), "multiratio": True, "width": 16, "height": 24}
    for ids, unconditional in zip(read, (False, True), strict=True):
        assert (
            ids
            == build_sequence(sample, "t2i", vocabulary.tokenizer, unconditional=unconditional)[0][: len(ids)].tolist()
        )
    read.clear()
    sample_images(model, vocabulary, ["a red"], seeds=[0], grid=(1, 2), guidance=2.0, null_prompt="a blue")
    assert read[1] == [vocabulary.tokenizer.bos_token_id, *encode_text(vocabulary.tokenizer, "a blue"), vocabulary.boi]


def test_another_null_prompt_is_refused_unless_forced(folder):
    trained = session_with(folder)
    assert trained.null_prompt("auto", 3.0) == trained.null_prompt("<unconditional>", 3.0) == "<unconditional>"
    with pytest.raises(ValueError, match="null_prompt=blurry: the model was trained with <unconditional>.*force=true"):
        trained.null_prompt("blurry", 3.0)
    assert session_with(folder, force=True).null_prompt("blurry", 3.0) == "blurry"
    untrained = session_with(folder, null_prompt="")
    assert untrained.null_prompt("auto", 1.0)
    with pytest.raises(ValueError, match="guidance=3.0: the model was trained without a null prompt"):
        untrained.null_prompt("auto", 3.0)


def test_another_vq_is_taken_when_forced(tmp_path):
    other = save(tmp_path / "other", fingerprint="f" * 64)
    assert open_vq(open_model(other, "cpu", force=True), AUTO).codebook_size == 1024
    with pytest.raises(ValueError, match="force=true"):
        open_vq(open_model(other, "cpu"), AUTO)


def test_old_cards_are_read(folder):
    card = json.loads((folder / "liquid.json").read_text())
    (folder / "liquid.json").write_text(
        json.dumps({k: v for k, v in card.items() if k not in ("null_prompt", "sizes")})
    )
    assert ModelCard.read(folder).null_prompt == "<unconditional>"
    (folder / "liquid.json").write_text(json.dumps(card))


def test_tasks_on_the_command_line(folder, tmp_path, capsys):
    Image.new("RGB", (24, 16), "teal").save(tmp_path / "a.png")
    job = {"checkpoint": str(folder), "device": "cpu", "vq": AUTO, "max_new_tokens": 5}
    run(GenerateJob(task="vqa", image=str(tmp_path / "a.png"), prompt="is it red?", **job))
    run(GenerateJob(task="t2t", prompt=f"a <image:{tmp_path / 'a.png'}> red", **job))
    assert capsys.readouterr().out.count("\n") >= 2
    for settings, message in (
        ({"task": "vqa", "image": str(tmp_path / "a.png")}, "task=vqa: give the question"),
        ({"task": "t2t", "prompt": "<image:no.png>"}, "<image:no.png> in a prompt: no such file"),
        ({"task": "chat", "prompt": "hello"}, "no chat template"),
    ):
        with pytest.raises(ValueError, match=message):
            run(GenerateJob(**settings, **job))
