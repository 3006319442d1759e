"""The sampler against slow loops over plain transformers: same logits, same draws, whatever the batch."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from liquid_train.data.sequence_pieces import encode_text
from liquid_train.data.sequences import build_sequence, prompt_ids
from liquid_train.data.tasks.vqa import question_ids
from liquid_train.generate.decoder import STEM, CachedDecoder
from liquid_train.generate.image_sampler import ImageSampler, Sampling, pick, sample_images, uniform_numbers
from liquid_train.generate.text_sampler import answer, caption, complete
from tests.tiny_model import ARCHITECTURES, tiny

PROMPTS = ["a red circle", "a blue rectangle that is large", "x", "", "a red circle"]
SEEDS = [3, 4, 5, 6, 7]
GRID = (3, 4)


@pytest.fixture(scope="module", params=list(ARCHITECTURES))
def model_and_vocabulary(request, tmp_path_factory):
    return tiny(tmp_path_factory.mktemp("model"), request.param)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return tiny(tmp_path_factory.mktemp("model"))


@torch.no_grad()
def slow_draw(model, vocabulary, prompt, seed, guidance, sampling, seen=None):
    """No cache, no batch, the full head: one forward pass a code over the whole sequence. seen: a list for the guided
    logits."""
    uniforms = uniform_numbers([seed], GRID[0] * GRID[1])
    conditional = prompt_ids({"text": prompt}, "t2i", vocabulary.tokenizer)
    null = prompt_ids({}, "t2i", vocabulary.tokenizer, unconditional=True)
    codes: list[int] = []
    for i in range(GRID[0] * GRID[1]):
        ids = [c + vocabulary.image_start for c in codes]
        cond, uncond = (
            model(torch.tensor([start + ids])).logits[:, -1, vocabulary.image_start : vocabulary.image_end]
            for start in (conditional, null)
        )
        guided = cond * guidance - uncond * (guidance - 1)
        if seen is not None:
            seen.append(guided[0])
        codes.append(int(pick(guided, uniforms[:, i], sampling)))
    return np.array(codes).reshape(GRID)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_draw_equals_a_loop_without_cache(model_and_vocabulary, guidance):
    model, vocabulary = model_and_vocabulary
    generated = sample_images(
        model, vocabulary, PROMPTS, seeds=SEEDS, grid=GRID, guidance=guidance, top_k=40, batch_size=3
    )
    expected = [
        slow_draw(model, vocabulary, p, s, guidance, Sampling(top_k=40)) for p, s in zip(PROMPTS, SEEDS, strict=True)
    ]
    np.testing.assert_array_equal(generated, expected)


def test_guided_logits_equal_a_loop_without_cache(model_and_vocabulary, monkeypatch):
    model, vocabulary = model_and_vocabulary
    found: list[torch.Tensor] = []
    monkeypatch.setattr(
        "liquid_train.generate.image_sampler.pick",
        lambda logits, *a: (found.append(logits.clone()), pick(logits, *a))[1],
    )
    sample_images(model, vocabulary, PROMPTS[:1], seeds=[3], grid=GRID, guidance=7.0)
    expected: list[torch.Tensor] = []
    slow_draw(model, vocabulary, PROMPTS[0], 3, 7.0, Sampling(), expected)
    torch.testing.assert_close(torch.cat(found), torch.stack(expected), atol=1e-4, rtol=0)


def test_an_image_depends_on_its_prompt_and_seed_alone(qwen):
    model, vocabulary = qwen
    together = sample_images(model, vocabulary, PROMPTS, seeds=SEEDS, grid=GRID, guidance=4.0)
    order = [4, 2, 0, 3, 1]
    turned = sample_images(
        model,
        vocabulary,
        [PROMPTS[i] for i in order],
        seeds=[SEEDS[i] for i in order],
        grid=GRID,
        guidance=4.0,
        batch_size=2,
    )
    np.testing.assert_array_equal(together[order], turned)
    assert not np.array_equal(together[0], together[4])  # the same prompt with another seed
    assert together.shape == (5, *GRID) and together.max() < vocabulary.codebook_size


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_have_the_same_bits_in_every_batch_and_on_every_rank(model_and_vocabulary, dtype, monkeypatch):
    model, vocabulary = model_and_vocabulary
    model = copy.deepcopy(model).to(dtype)
    prompts = [f"a {'red' if i % 3 else 'teal blue'} {'circle' if i % 2 else 'x'}" for i in range(24)]
    logits: dict[int, list[torch.Tensor]] = {}  # by seed

    def watched(self, prompts, seeds, report):
        def pick_and_keep(found, uniforms, sampling):
            for seed, row in zip(seeds, found, strict=True):
                logits.setdefault(seed, []).append(row.clone())
            return pick(found, uniforms, sampling)

        monkeypatch.setattr("liquid_train.generate.image_sampler.pick", pick_and_keep)
        return original(self, prompts, seeds, report)

    original = ImageSampler.sample
    monkeypatch.setattr(ImageSampler, "sample", watched)

    def generated(numbers, batch_size, threads=1):
        torch.set_num_threads(threads)
        logits.clear()
        codes = sample_images(
            model,
            vocabulary,
            [prompts[n] for n in numbers],
            seeds=numbers,
            grid=GRID,
            guidance=7.0,
            batch_size=batch_size,
        )
        return codes, {seed: torch.stack(rows) for seed, rows in logits.items()}

    before = torch.get_num_threads()
    try:
        codes, expected = generated(range(24), 24)
        ways = [
            (range(24), 1, 1),
            (range(24), 5, 1),
            (range(24), 24, 2),
            (range(0, 24, 2), 24, 1),
            (range(1, 24, 2), 24, 2),
        ]
        for numbers, batch_size, threads in ways:
            got, bits = generated(numbers, batch_size, threads)
            np.testing.assert_array_equal(got, codes[list(numbers)])
            assert all(torch.equal(bits[n], expected[n]) for n in numbers), (batch_size, threads)
    finally:
        torch.set_num_threads(before)


def test_guidance_changes_the_image_and_one_means_none(qwen):
    model, vocabulary = qwen
    greedy = {
        g: sample_images(model, vocabulary, PROMPTS[:2], seeds=[0, 0], grid=GRID, guidance=g, temperature=0)
        for g in (0.999999, 1.0, 7.0)
    }
    np.testing.assert_array_equal(greedy[0.999999], greedy[1.0])
    assert not np.array_equal(greedy[7.0], greedy[1.0])


def test_progress_reaches_the_end(qwen):
    model, vocabulary = qwen
    seen: list[tuple[int, int]] = []
    sample_images(model, vocabulary, PROMPTS, seeds=SEEDS, grid=GRID, batch_size=2, progress=lambda *p: seen.append(p))
    assert seen == sorted(seen) and seen[-1] == (60, 60) and len(seen) == 9  # three batches, three rows of codes


def test_pick_follows_the_distribution_and_its_limits():
    logits = torch.tensor([2.0, 0.0, 1.0, -1.0, float("-inf")])
    uniforms = (torch.arange(20000) + 0.5) / 20000
    rows = logits.expand(20000, -1)

    def shares(**options):
        return torch.bincount(pick(rows, uniforms, Sampling(**options)), minlength=5) / 20000

    torch.testing.assert_close(shares(), logits.softmax(0), atol=1e-4, rtol=0)
    torch.testing.assert_close(shares(temperature=0.5), (logits * 2).softmax(0), atol=1e-4, rtol=0)
    assert shares(temperature=0).tolist() == [1, 0, 0, 0, 0]
    expected = torch.tensor([2.0, 1.0]).softmax(0)
    torch.testing.assert_close(shares(top_k=2)[[0, 2]], expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(shares(top_p=0.7)[[0, 2]], expected, atol=1e-4, rtol=0)  # 0.64 is not enough, 0.88 is
    assert shares(top_p=0.6).tolist() == [1, 0, 0, 0, 0]
    edge = pick(torch.tensor([[float("-inf"), 0.0, float("-inf")]]), torch.tensor([1 - 2**-24]), Sampling())
    assert edge.item() == 1


def greedy_reference(model, vocabulary, ids, stop, limit):
    """transformers' own generate, image ids suppressed, cut where the answer ends."""
    out = model.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        do_sample=False,
        max_new_tokens=limit,
        suppress_tokens=list(range(vocabulary.text_size, vocabulary.rows)),
        eos_token_id=vocabulary.eos,
        pad_token_id=vocabulary.pad,
    )[0, len(ids) :].tolist()
    text = vocabulary.tokenizer.decode(
        [t for t in out if t != vocabulary.eos], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return text.split("\n")[0].strip() if stop else text


def test_guided_greedy_codes_equal_transformers_generate(model_and_vocabulary):
    model, vocabulary = model_and_vocabulary
    described = prompt_ids({"text": "a red circle"}, "t2i", vocabulary.tokenizer)
    null = prompt_ids({}, "t2i", vocabulary.tokenizer, unconditional=True)
    found = model.generate(
        torch.tensor([described]),
        attention_mask=torch.ones(1, len(described), dtype=torch.long),
        do_sample=False,
        min_new_tokens=12,
        max_new_tokens=12,
        guidance_scale=7.0,
        negative_prompt_ids=torch.tensor([null]),
        negative_prompt_attention_mask=torch.ones(1, len(null), dtype=torch.long),
        suppress_tokens=[*range(vocabulary.image_start), *range(vocabulary.image_end, vocabulary.rows)],
    )[0, len(described) :]
    generated = sample_images(model, vocabulary, ["a red circle"], seeds=[0], grid=GRID, guidance=7.0, temperature=0)
    assert generated.ravel().tolist() == (found - vocabulary.image_start).tolist()


def test_answers_equal_transformers_generate_one_by_one(model_and_vocabulary):
    model, vocabulary = model_and_vocabulary
    random = np.random.default_rng(0)
    images = [random.integers(0, 1024, (3, 4)).astype(np.uint16) for _ in range(3)] + [
        random.integers(0, 1024, (2, 3)).astype(np.uint16)
    ]
    questions = ["is there a circle?", "what color is the shape?", "x", "is it <eoi> red? ü"]
    items = [(images[i], questions[q]) for i, q in ((0, 0), (1, 1), (0, 2), (3, 3), (2, 0), (0, 3), (1, 2), (0, 1))]
    expected = []
    for codes, question in items:
        ids = prompt_ids({"codes": codes}, "vqa", vocabulary.tokenizer) + question_ids(question, vocabulary.tokenizer)
        document, labels = build_sequence(
            {"codes": codes, "question": question, "answer": "no"}, "vqa", vocabulary.tokenizer
        )
        assert ids == document[labels == -100].tolist()  # the prompt is what training shows before an answer
        expected.append(greedy_reference(model, vocabulary, ids, True, 6))
    assert len(set(expected)) > 3
    for size in (1, 3, 64):
        assert answer(model, vocabulary, items, max_new_tokens=6, batch_size=size) == expected


def test_captions_and_completions_equal_transformers_generate(model_and_vocabulary):
    model, vocabulary = model_and_vocabulary
    images = list(np.random.default_rng(1).integers(0, 1024, (3, 2, 2)))
    expected = [
        greedy_reference(model, vocabulary, prompt_ids({"codes": c}, "i2t", vocabulary.tokenizer), True, 8)
        for c in images
    ]
    assert caption(model, vocabulary, images, max_new_tokens=8, batch_size=2) == expected
    prompts = ["a red", "what color", ""]
    bos = vocabulary.tokenizer.bos_token_id
    expected = [
        greedy_reference(model, vocabulary, [bos, *encode_text(vocabulary.tokenizer, p)], False, 8) for p in prompts
    ]
    assert complete(model, vocabulary, prompts, seeds=[0, 1, 2], max_new_tokens=8, batch_size=2) == expected


def test_completions_with_temperature_depend_on_the_seed_alone(qwen):
    model, vocabulary = qwen

    def one(seeds, **options):
        return complete(
            model,
            vocabulary,
            ["a red", "what color is"],
            seeds=seeds,
            sampling=Sampling(1.0),
            max_new_tokens=8,
            **options,
        )

    assert one([1, 2]) == one([1, 2], batch_size=1)
    assert one([1, 2])[0] == one([1, 9])[0] and one([1, 2])[1] != one([1, 9])[1]


def test_a_newline_ends_an_answer_and_an_image_id_never_wins(qwen, monkeypatch):
    model, vocabulary = qwen
    word, newline = (encode_text(vocabulary.tokenizer, text)[0] for text in ("y", "\n"))
    script, widths = iter([word, newline]), set()

    def scripted(logits, uniforms, sampling):
        widths.add(logits.shape[-1])
        return torch.full(logits.shape[:-1], next(script))  # a third token is not asked for

    monkeypatch.setattr("liquid_train.generate.text_sampler.pick", scripted)
    assert answer(model, vocabulary, [(np.zeros((2, 2), np.uint16), "q")], max_new_tokens=5) == ["y"]
    assert widths == {vocabulary.text_size}


def test_too_long_a_prompt_is_refused_with_the_limit(qwen):
    model, vocabulary = qwen
    with pytest.raises(ValueError, match="512.*max_position_embeddings"):
        sample_images(model, vocabulary, ["red circle " * 300], seeds=[0], grid=GRID)


def test_the_head_reads_only_the_rows_asked_for(qwen):
    model, vocabulary = qwen
    ids = torch.tensor([[1, 2, 3]])
    hidden = CachedDecoder(model, 1, 3, 3).feed(ids, torch.full_like(ids, STEM), torch.arange(3)[None])
    part = CachedDecoder(model, 1, 3, 3).logits(hidden, 5, 9)
    torch.testing.assert_close(part, model(ids).logits[..., 5:9])
