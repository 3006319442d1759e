"""Which metrics `liquid eval` knows, and what each of them is given. What several need is made once: questions, drawn pictures.

vqa              questions about unseen pictures: accuracy, blind and with shuffled pictures
t2i              right colours and shapes of drawn pictures
image_quality    distances of drawn from real pictures: Frechet, kernel, precision, recall
self_vqascore    how well the model itself finds that its pictures fit their prompts
captions         how well it tells right captions of real pictures from wrong ones
image_tokenizer  what real pictures lose through the image tokenizer
genai_bench      self_vqascore of pictures drawn from GenAI-Bench's prompts
vqav2, textvqa, gqa, pope, mme  answers to published benchmarks (benchmark_files.py)
language         lm-evaluation-harness
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from evals import benchmarks, t2i, vqa
from evals.benchmark_files import Benchmark
from evals.features import open_features
from evals.genai_bench import read_genai_bench
from evals.image_quality import PictureSets, image_quality
from evals.language import check_language, language
from evals.measurement import Measurement, ModelHandle
from evals.self_vqascore import score_drawn, tell_captions
from evals.tokenizer_quality import tokenizer_quality
from evals.wrong_captions import caption_pairs
from liquid_train.config import EvalJob
from liquid_train.data.shards import ShardSet
from liquid_train.eval_settings import BENCHMARKS, DRAWING, METRICS
from liquid_train.generate.pictures import decode
from liquid_train.generate.session import Session, open_vq


class Inputs:
    """Everything that metrics measure on, each made when it is first asked for."""

    def __init__(self, config: EvalJob, session: Session, benchmarks: dict[str, Benchmark]) -> None:
        """Opens the data and the image tokenizer; ValueError when they do not fit the model."""
        self.config, self.card, self.benchmarks = config, session.card, benchmarks
        self.tasks = check_language(config.language) if "language" in config.metrics else None
        self.tagged = read_genai_bench(Path(config.genai_bench)) if config.genai_bench is not None else []
        self.image_tokenizer = open_vq(session, config.vq)
        open_features(config.features, self.image_tokenizer)  # whatever is wrong with its files is told before anything is drawn
        if chosen(config) & {"vqa", "image_quality"}:
            _ = self.questions, self.train
        self.pairs = caption_pairs(self.shards, config.caption_images, config.seed) if "captions" in config.metrics else None
        if chosen(config) & {"t2i", "image_quality", "image_tokenizer"}:
            _ = self.real

    @cached_property
    def shards(self) -> ShardSet:
        return self.opened(self.config.shards)

    @cached_property
    def train(self) -> ShardSet | None:
        return self.opened(self.config.train_shards) if self.config.train_shards is not None else None

    def opened(self, path: str) -> ShardSet:
        return ShardSet(path, vq_fingerprint=self.card.vq_fingerprint, codebook_size=self.card.codebook_size)

    @cached_property
    def questions(self) -> vqa.QuestionSet:
        return vqa.load_questions(self.shards, self.config.max_images)

    @cached_property
    def real(self) -> t2i.RealPictures:
        return t2i.real_pictures()


def chosen(config: EvalJob) -> set[str]:
    """The metrics to measure: none that draws where images_per_prompt is 0."""
    return {name for name in config.metrics if config.images_per_prompt or name not in DRAWING}


class Suite:
    """The chosen metrics of one model."""

    def __init__(self, handle: ModelHandle, inputs: Inputs) -> None:
        self.handle, self.inputs, self.config = handle, inputs, inputs.config

    @cached_property
    def drawn(self) -> t2i.Drawn:
        c = self.config
        prompts = [caption for caption in t2i.CAPTIONS for _ in range(c.images_per_prompt)]
        return t2i.draw_pictures(self.handle, prompts, seed=c.seed, guidance=c.guidance, temperature=c.temperature, top_k=c.top_k, batch_size=c.batch_size)

    def vqa(self) -> Measurement:
        data = vqa.VQAData(self.inputs.questions, self.inputs.train)
        return vqa.measure(self.handle, data, seed=self.config.seed, batch_size=self.config.batch_size)

    def t2i(self) -> Measurement:
        return t2i.measure(self.handle, self.drawn, self.inputs.real, per_prompt=self.config.images_per_prompt)

    def image_quality(self) -> Measurement:
        drawn, real, codes = self.drawn, self.inputs.real, self.inputs.questions.codes
        count = max(len(drawn.pixels), 2)
        data = PictureSets(
            drawn.pixels, real.pixels, drawn.prompts, drawn.seeds, [t2i.named(p)[1] for p in drawn.prompts], list(real.shapes), drawn.sampler,
            f"{len(real.pixels)} original test pictures; reconstructions: {len(codes[:count])} of them through the VQ",
            decode(self.inputs.image_tokenizer, np.stack(codes[:count])),
        )  # fmt: skip
        return image_quality(self.handle, data, self.config.features, seed=self.config.seed)

    def self_vqascore(self) -> Measurement:
        return score_drawn(self.handle, t2i.drawn_texts(self.drawn), self.config.vqascore, seed=self.config.seed)

    def captions(self) -> Measurement:
        assert self.inputs.pairs is not None
        return tell_captions(self.handle, self.inputs.pairs, self.config.vqascore, seed=self.config.seed)

    def image_tokenizer(self) -> Measurement:
        return tokenizer_quality(self.handle, self.inputs.real.pixels[: self.config.tokenizer_images], self.config.features, seed=self.config.seed)

    def genai_bench(self) -> Measurement:
        c, prompts = self.config, self.inputs.tagged
        drawn = t2i.draw_pictures(
            self.handle, [p.text for p in prompts], seed=c.seed, guidance=c.guidance, temperature=c.temperature, top_k=c.top_k, batch_size=c.batch_size
        )
        measured = score_drawn(self.handle, t2i.drawn_texts(drawn, [p.tags for p in prompts]), c.vqascore, seed=c.seed)
        renamed = {key.replace("self_vqascore", "genai_bench", 1): value for key, value in measured.values.items()}
        return Measurement(renamed, measured.receipt)

    def language(self) -> Measurement:
        return language(self.handle, self.config.language, self.inputs.tasks)

    def benchmark(self, name: str) -> Measurement:
        return benchmarks.measure(self.handle, self.inputs.benchmarks[name], self.config.benchmarks, batch_size=self.config.batch_size)

    def measures(self) -> dict[str, Callable[[], Measurement]]:
        """The chosen ones by name, in the order of METRICS."""
        names = [name for name in METRICS if name in chosen(self.config)]
        return {name: partial(self.benchmark, name) if name in BENCHMARKS else getattr(self, name) for name in names}
