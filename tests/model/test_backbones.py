"""The backbones of conf/backbone and the ladder of conf/experiment/liquid: sizes, vocabulary rows, tokenizers,
folders."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from liquid_train.config.compose import conf_dir, load
from liquid_train.config.schema import TrainJob
from liquid_train.data.batch import MicroBatch
from liquid_train.data.document_plan import DocumentPlan
from liquid_train.model import backbone
from liquid_train.model.loss import LossModule
from liquid_train.model.settings import BackboneConfig, LossConfig
from liquid_train.training.run_vocabulary import make_tokenizer, open_vocabulary
from liquid_train.vocabulary import IMAGE_TOKENS, load_tokenizer, train_bpe
from tests.model.test_backbone import pretrained

SIGLIP = 416_866_032  # parameters of Gemma 3's image encoder, SigLIP So400m at 896 pixels
PARAMETERS = {
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-32b": 32_763_876_352,
    "llama3.2-1b": 1_235_814_400,
    "gemma-2b": 2_506_172_416,
    "gemma-7b": 8_537_680_896,
    "gemma2-2b": 2_614_341_888,
    "gemma2-9b": 9_241_705_984,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "llama3.2-3b": 3_212_749_824,
    "llama3.1-8b": 8_030_261_248,
    "gemma3-1b": 999_885_952,
    "gemma3-4b": 4_300_079_472 - SIGLIP - (1_152 * 2_560 + 1_152),  # published: with encoder, projector and its norm
    "gemma3-12b": 12_187_325_040 - SIGLIP - (1_152 * 3_840 + 1_152),
    "smollm3-3b": 3_075_098_624,
    "olmo2-1b": 1_484_916_736,
    "olmo2-7b": 7_298_617_344,
    "granite3.1-2b": 2_533_531_648,
    "granite3.1-8b": 8_170_848_256,
}
TINY = {"tiny": "qwen2", "tiny-llama": "llama", "tiny-gemma": "gemma", "tiny-gemma2": "gemma2"}
LADDER = {
    "0.5b": "qwen2.5-0.5b",
    "1b": "llama3.2-1b",
    "2b": "gemma2-2b",
    "7b": "gemma-7b",
    "9b": "gemma2-9b",
    "32b": "qwen2.5-32b",
}
MODERN = {
    "0.6b": "qwen3-0.6b",
    "1b": "olmo2-1b",
    "1.7b": "qwen3-1.7b",
    "2b": "granite3.1-2b",
    "3b": "smollm3-3b",
    "4b": "qwen3-4b",
    "7b": "olmo2-7b",
    "8b": "qwen3-8b",
    "12b": "gemma3-12b",
    "14b": "qwen3-14b",
    "32b": "qwen3-32b",
}
TEXTS = ["a red circle, isn't it?\n what color  is the shape? Café 123", "hello   World's images"]


def settings(name: str, *overrides: str) -> BackboneConfig:
    return load("plan", [f"backbone={name}", *overrides]).backbone


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    config = backbone.model_config(settings(name), 300)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


def test_what_a_count_does_not_show() -> None:
    """Fields of the published config.json files that change no shape."""
    llama = backbone.model_config(settings("llama3.2-1b"), 300)
    assert (
        llama.rope_parameters["rope_type"] == "llama3"
        and llama.rope_parameters["factor"] == 32
        and llama.rope_parameters["rope_theta"] == 5e5
    )
    qwen = {name: backbone.model_config(settings(f"qwen2.5-{name}"), 300) for name in ("0.5b", "7b", "32b")}
    assert [c.rms_norm_eps for c in qwen.values()] == [1e-6, 1e-6, 1e-5]
    assert all(
        c.rope_parameters["rope_theta"] == 1e6 and set(c.layer_types) == {"full_attention"} for c in qwen.values()
    )
    gemma2 = backbone.model_config(settings("gemma2-9b"), 300)
    assert (
        gemma2.attn_logit_softcapping,
        gemma2.final_logit_softcapping,
        gemma2.sliding_window,
        gemma2.query_pre_attn_scalar,
    ) == (50, 30, 4096, 256)
    assert gemma2.layer_types[:2] == ["sliding_attention", "full_attention"]
    assert backbone.model_config(settings("gemma-7b"), 300).hidden_act == "gelu_pytorch_tanh"
    gemma3 = {name: backbone.model_config(settings(f"gemma3-{name}"), 300) for name in ("1b", "4b", "12b")}
    assert [c.sliding_window for c in gemma3.values()] == [512, 1024, 1024]
    for c in gemma3.values():
        assert c.layer_types[:6] == ["sliding_attention"] * 5 + ["full_attention"]
        rope = c.rope_parameters
        assert (rope["sliding_attention"]["rope_theta"], rope["full_attention"]["rope_theta"]) == (1e4, 1e6)
    assert [c.rope_parameters["full_attention"].get("factor") for c in gemma3.values()] == [None, 8, 8]
    smollm3 = backbone.model_config(settings("smollm3-3b"), 300)
    assert smollm3.no_rope_layers == [1, 1, 1, 0] * 9 and smollm3.rope_parameters["rope_theta"] == 5e6
    granite = [backbone.model_config(settings(f"granite3.1-{name}"), 300) for name in ("2b", "8b")]
    assert [c.logits_scaling for c in granite] == [8, 16] and [c.residual_multiplier for c in granite] == [0.22, 0.22]
    assert [c.attention_multiplier for c in granite] == [1 / 64, 1 / 128], "one over the size of a head, not its root"


@pytest.mark.parametrize("name", TINY)
def test_a_folder_of_every_tiny_backbone_loads_in_plain_transformers(name: str, tmp_path: Path) -> None:
    """The tokenizer trained here gives the same ids there, whatever class AutoTokenizer picks for the architecture."""
    tokenizer = train_bpe(TEXTS, 320, tmp_path)
    c = TrainJob(backbone=settings(name))
    vocabulary = open_vocabulary(c, tmp_path, 64)
    config = backbone.model_config(c.backbone, len(tokenizer))
    assert config.model_type == TINY[name] and vocabulary.rows == len(tokenizer) + 64
    model = backbone.build(config, vocabulary)
    backbone.materialize(model, torch.device("cpu"))
    backbone.fill_random(model, 0)
    model.save_pretrained(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert len(theirs) == len(tokenizer)
    for text in [*TEXTS, "<boi> in a caption"]:
        assert theirs(text).input_ids == tokenizer(text).input_ids
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    ids = torch.tensor([tokenizer(TEXTS[0]).input_ids])
    ours = model(input_ids=ids, use_cache=False, document_plan=DocumentPlan.from_lengths([ids.shape[1]])).logits
    torch.testing.assert_close(ours, plain(input_ids=ids, use_cache=False).logits, atol=1e-5, rtol=1e-5)


def published_rows(tmp_path: Path, rows: int) -> TrainJob:
    """A tiny backbone whose architecture states its number of rows, with a BPE of 300 entries in tmp_path."""
    train_bpe(TEXTS, 300, tmp_path)
    c = TrainJob(backbone=settings("tiny-llama"))
    c.backbone.architecture["vocab_size"] = rows
    return c


def test_rows_of_a_published_vocabulary_that_no_id_uses_never_win(tmp_path: Path) -> None:
    c = published_rows(tmp_path, 500)
    vocabulary = open_vocabulary(c, tmp_path, 64)
    assert (vocabulary.image_start, vocabulary.image_end, vocabulary.rows) == (300, 364, 564)
    lm = backbone.build(backbone.model_config(c.backbone, 300), vocabulary)
    backbone.materialize(lm, torch.device("cpu"))
    backbone.fill_random(lm, 0)
    ids = torch.arange(280, 364).view(1, -1)
    batch = MicroBatch(
        ids,
        ids.roll(-1, 1),
        torch.arange(84).view(1, -1),
        torch.ones_like(ids).to(torch.int8),
        torch.ones(1, 84),
        torch.arange(84),
        DocumentPlan.from_lengths([84]),
    )
    root = LossModule.of(lm, vocabulary, LossConfig())
    before = root(batch)
    with torch.no_grad():
        lm.get_output_embeddings().weight[364:] = lm.get_output_embeddings().weight[:1] * 1e4
    after = root(batch)
    assert torch.equal(after.per_task, before.per_task), "neither loss nor accuracy sees them"
    after.total.backward()
    assert not lm.get_output_embeddings().weight.grad[364:].any() and lm.get_output_embeddings().weight.grad[:364].any()


def test_a_tokenizer_with_more_entries_than_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match="backbone.architecture.vocab_size: the backbone has 299 embedding rows, fewer than the 300 ids",
    ):
        open_vocabulary(published_rows(tmp_path, 299), tmp_path, 64)


def test_a_random_backbone_takes_the_tokenizer_of_a_folder(tmp_path: Path) -> None:
    folder = pretrained(tmp_path / "hub", "qwen2", True, 0)
    c = TrainJob(backbone=settings("qwen2.5-0.5b", f"backbone.tokenizer={folder}"))
    make_tokenizer(c, {}, tmp_path / "run")
    vocabulary = open_vocabulary(c, tmp_path / "run", 8192)
    original = load_tokenizer(folder)
    assert vocabulary.image_start == len(original) and vocabulary.rows == 151_936 + 8_192
    assert (
        set(IMAGE_TOKENS) <= set(vocabulary.tokenizer.get_vocab())
        and original("hello world").input_ids == vocabulary.tokenizer("hello world").input_ids
    )


@pytest.mark.parametrize("name", ["gemma2-9b", "qwen3-8b", "qwen2.5-0.5b"])
def test_a_folder_counts_more_than_the_named_architecture(name: str, tmp_path: Path) -> None:
    folder = pretrained(tmp_path / "hub", "llama", False, 100)
    c = TrainJob(backbone=settings(name, f"backbone.path={folder}", "backbone.init=pretrained"))
    make_tokenizer(c, {}, tmp_path / "run")
    vocabulary = open_vocabulary(c, tmp_path / "run", 64)
    config = backbone.model_config(c.backbone, vocabulary.text_size)
    assert (config.model_type, config.hidden_size, vocabulary.rows) == ("llama", 32, vocabulary.text_size + 100 + 64)
    model = backbone.build(config, vocabulary)
    backbone.materialize(model, torch.device("cpu"))
    backbone.fill_from_folder(model, folder)
    stored = AutoModelForCausalLM.from_pretrained(folder).get_output_embeddings().weight
    assert torch.equal(model.get_output_embeddings().weight[: len(stored)], stored)


@pytest.mark.parametrize("size", LADDER)
def test_the_ladder_trains_the_paper_s_backbone_with_published_settings(size: str) -> None:
    c = load("train", [f"experiment=liquid/{size}", "vq.checkpoint=somewhere", "backbone.init=random"])
    assert c.backbone == settings(LADDER[size]) and c.run.name == f"liquid-{size}"
    assert (c.optimizer.lr, c.optimizer.weight_decay, c.optimizer.betas) == (2e-5, 0.0, [0.9, 0.999])
    assert (c.schedule.kind, c.schedule.warmup, c.schedule.min_lr) == ("cosine", 0.03, 0.0)
    assert c.data.unconditional == 0.1 and c.data.global_batch * c.data.seq_len == 2**20, (
        "about 1,024 documents of 1,024 tokens"
    )
    assert "chameleon" in c.vq.config and {s.task for s in c.data.sources.values()} == {"text", "t2i", "i2t"}


@pytest.mark.parametrize("size", MODERN)
def test_the_modern_ladder_differs_from_the_paper_s_in_its_backbone_alone(size: str) -> None:
    keys = ["vq.checkpoint=somewhere", "backbone.init=random"]
    c = load("train", [f"experiment=liquid_modern/{size}", *keys])
    assert c.backbone == settings(MODERN[size]) and c.run.name == f"liquid-modern-{size}"
    paper = load("train", ["experiment=liquid/0.5b", *keys])
    shared = ("optimizer", "schedule", "loss", "data", "vq", "parallel", "checkpoint")
    assert all(getattr(c, section) == getattr(paper, section) for section in shared)
    assert c.train.steps == paper.train.steps


def test_every_size_of_the_ladders_is_tested() -> None:
    for folder, sizes in (("liquid", LADDER), ("liquid_modern", MODERN)):
        names = {path.stem for path in (conf_dir() / "experiment" / folder).glob("*.yaml")} - {"ladder"}
        assert names == {*sizes}


def test_another_backbone_takes_the_place_of_a_ladder_s() -> None:
    c = load("plan", ["experiment=liquid_modern/8b", "backbone=llama3.1-8b"])
    assert c.backbone.architecture["model_type"] == "llama" and c.optimizer.lr == 2e-5


def test_the_ladder_starts_from_published_weights() -> None:
    with pytest.raises(ValueError, match=r"backbone.init=pretrained needs backbone.path=FOLDER"):
        load("train", ["experiment=liquid/0.5b"])


def test_every_backbone_is_tested_and_documented() -> None:
    names = {path.stem for path in (conf_dir() / "backbone").glob("*.yaml")}
    assert names == {*PARAMETERS, *TINY, "folder"}
    page = Path(__file__).parents[2] / "docs" / "backbones.md"
    assert all(f"`{name}`" in page.read_text() for name in names)


def test_chameleon_does_not_get_another_tokenizer_s_weights() -> None:
    assert (
        "vq_easy" not in load("tokenize", ["vq=chameleon", "tokenize.source=folder", "tokenize.output=x"]).vq.checkpoint
    )
