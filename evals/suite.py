"""Which metrics `liquid eval` knows, and what each of them is given. What several need is made once: questions, drawn
images.

vqa              questions about unseen images: accuracy, blind and with shuffled images
t2i              right colours and shapes of generated images
image_quality    distances of drawn from real images: Frechet, kernel, precision, recall
self_vqascore    how well the model itself finds that its images fit their prompts
captions         how well it tells right captions of real images from wrong ones
heldout          loss and token accuracy on held-out documents
image_tokenizer  what real images lose through the image tokenizer
vqascore         how well another model finds that they do
clipscore        how near images and prompts are in CLIP's space
reference_quality  distances of generated images from a folder of real ones with their prompts (MJHQ-30K)
genai_bench      self_vqascore of images generated from GenAI-Bench's prompts
genai_bench_vqascore  vqascore of the same images
wise             images of WISE's prompts for a judge
vqav2, textvqa, gqa, pope, mme  answers to published benchmarks (benchmark_files.py)
language         lm-evaluation-harness
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from evals.benchmarks import answers as benchmarks
from evals.benchmarks.question_files import Benchmark
from evals.distances.features import open_features
from evals.easy_vqa import shapes_and_colors as t2i
from evals.easy_vqa.captions import caption_pairs
from evals.metrics import vqa, wise
from evals.metrics.clipscore import clipscore, open_clip
from evals.metrics.genai_bench import read_genai_bench
from evals.metrics.image_quality import ImageSets, image_quality
from evals.metrics.image_tokenizer import tokenizer_quality
from evals.metrics.language import check_language, language
from evals.metrics.reference_quality import read_reference, reference_quality
from evals.metrics.self_vqascore import score_generated, tell_captions
from evals.metrics.vqascore import Images, open_judge, vqascore
from evals.run import trained_with
from evals.settings import BENCHMARKS, DRAWING, METRICS, EvalJob
from liquid_train.data.shards import ShardSet
from liquid_train.generate.images import decode
from liquid_train.generate.session import Session, open_vq
from liquid_train.measurement.measurement import Measurement, ModelHandle
from liquid_train.training.heldout import heldout, heldout_set


class Inputs:
    """Everything that metrics measure on, each made when it is first asked for."""

    def __init__(self, config: EvalJob, session: Session, benchmarks: dict[str, Benchmark]) -> None:
        """Opens the data and the image tokenizer; UserError when they do not fit the model."""
        self.config, self.card, self.benchmarks = config, session.card, benchmarks
        self.tasks = check_language(config.language) if "language" in config.metrics else None
        self.tagged = read_genai_bench(Path(config.genai_bench)) if config.genai_bench is not None else []
        self.image_tokenizer = open_vq(session, config.vq)
        # whatever is wrong with files is told before anything is drawn
        self.features = open_features(config.features, self.image_tokenizer)
        self.judge = (
            open_judge(config.vqascore, session.model.device)
            if chosen(config) & {"vqascore", "genai_bench_vqascore"}
            else None
        )
        self.clip = open_clip(config.clipscore, session.model.device) if "clipscore" in chosen(config) else None
        self.reference = read_reference(config.reference) if "reference_quality" in config.metrics else None
        self.wise = wise.read_prompts(config.wise) if "wise" in config.metrics else None
        where, vocabulary = config.heldout, session.vocabulary
        self.heldout = None
        if "heldout" in config.metrics:
            trained = trained_with(config)
            self.heldout = heldout_set(
                trained.data,
                trained.loss,
                trained.seed,
                vocabulary,
                self.card.vq_fingerprint,
                micro_batch=trained.train.micro_batch,
                whole=where.whole,
                batches=where.batches,
            )
        if chosen(config) & {"vqa", "image_quality"}:
            _ = self.questions, self.train
        self.pairs = (
            caption_pairs(self.shards, config.caption_images, config.seed) if "captions" in config.metrics else None
        )
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
    def real(self) -> t2i.RealImages:
        return t2i.real_images()


def chosen(config: EvalJob) -> set[str]:
    """The metrics to measure: none that draws where images_per_prompt is 0."""
    return {name for name in config.metrics if config.images_per_prompt or name not in DRAWING}


def images(generated: t2i.GeneratedImages, tags: list[list[str]]) -> Images:
    return Images(generated.pixels, generated.prompts, tags, generated.seeds, generated.sampler)


class Suite:
    """The chosen metrics of one model."""

    def __init__(self, handle: ModelHandle, inputs: Inputs) -> None:
        self.handle, self.inputs, self.config = handle, inputs, inputs.config

    @cached_property
    def generated(self) -> t2i.GeneratedImages:
        return self.draw(
            self.handle,
            [caption for caption in t2i.CAPTIONS for _ in range(self.config.images_per_prompt)],
            self.config.seed,
        )

    @cached_property
    def genai_generated(self) -> t2i.GeneratedImages:
        return self.draw(self.handle, [p.text for p in self.inputs.tagged], self.config.seed)

    def draw(self, handle: ModelHandle, prompts: list[str], seed: int) -> t2i.GeneratedImages:
        c = self.config
        return t2i.generate_images(
            handle,
            prompts,
            seed=seed,
            guidance=c.guidance,
            temperature=c.temperature,
            top_k=c.top_k,
            batch_size=c.batch_size,
        )

    def judged(self, generated: t2i.GeneratedImages, tags: list[list[str]], name: str) -> Measurement:
        assert self.inputs.judge is not None
        return vqascore(
            self.handle,
            self.inputs.judge,
            images(generated, tags),
            self.config.vqascore,
            name=name,
            seed=self.config.seed,
        )

    def vqa(self) -> Measurement:
        data = vqa.VQAData(self.inputs.questions, self.inputs.train)
        return vqa.measure(self.handle, data, seed=self.config.seed, batch_size=self.config.batch_size)

    def t2i(self) -> Measurement:
        return t2i.measure(self.handle, self.generated, self.inputs.real, per_prompt=self.config.images_per_prompt)

    def image_quality(self) -> Measurement:
        generated, real, codes = self.generated, self.inputs.real, self.inputs.questions.codes
        count = max(len(generated.pixels), 2)
        data = ImageSets(
            generated.pixels,
            real.pixels,
            generated.prompts,
            generated.seeds,
            [t2i.named(p)[1] for p in generated.prompts],
            list(real.shapes),
            generated.sampler,
            f"{len(real.pixels)} original test images; reconstructions: {len(codes[:count])} of them through the VQ",
            decode(self.inputs.image_tokenizer, np.stack(codes[:count])),
        )
        return image_quality(self.handle, data, self.config.features, seed=self.config.seed)

    def self_vqascore(self) -> Measurement:
        return score_generated(
            self.handle, t2i.generated_texts(self.generated), self.config.vqascore, seed=self.config.seed
        )

    def captions(self) -> Measurement:
        assert self.inputs.pairs is not None
        return tell_captions(self.handle, self.inputs.pairs, self.config.vqascore, seed=self.config.seed)

    def heldout(self) -> Measurement:
        assert self.inputs.heldout is not None
        return heldout(self.handle, self.inputs.heldout)

    def image_tokenizer(self) -> Measurement:
        return tokenizer_quality(
            self.handle,
            self.inputs.real.pixels[: self.config.tokenizer_images],
            self.config.features,
            seed=self.config.seed,
        )

    def vqascore(self) -> Measurement:
        return self.judged(self.generated, [[] for _ in self.generated.prompts], "vqascore")

    def clipscore(self) -> Measurement:
        assert self.inputs.clip is not None
        return clipscore(
            self.handle, self.inputs.clip, images(self.generated, []), self.config.clipscore, seed=self.config.seed
        )

    def reference_quality(self) -> Measurement:
        c = self.config
        assert self.inputs.reference is not None
        return reference_quality(
            self.handle,
            self.inputs.reference,
            self.inputs.features,
            self.draw,
            c.features,
            max_bad=c.reference.max_bad,
            seed=c.seed,
        )

    def genai_bench(self) -> Measurement:
        tags = [p.tags for p in self.inputs.tagged]
        measured = score_generated(
            self.handle, t2i.generated_texts(self.genai_generated, tags), self.config.vqascore, seed=self.config.seed
        )
        renamed = {key.replace("self_vqascore", "genai_bench", 1): value for key, value in measured.values.items()}
        return Measurement(renamed, measured.provenance)

    def genai_bench_vqascore(self) -> Measurement:
        return self.judged(self.genai_generated, [p.tags for p in self.inputs.tagged], "genai_bench_vqascore")

    def wise(self) -> Measurement:
        assert self.inputs.wise is not None
        return wise.images(
            self.handle,
            self.inputs.wise,
            self.draw(self.handle, [p.text for p in self.inputs.wise.prompts], self.config.seed),
        )

    def language(self) -> Measurement:
        return language(self.handle, self.config.language, self.inputs.tasks)

    def benchmark(self, name: str) -> Measurement:
        return benchmarks.measure(
            self.handle, self.inputs.benchmarks[name], self.config.benchmarks, batch_size=self.config.batch_size
        )

    def measures(self) -> dict[str, Callable[[], Measurement]]:
        """The chosen ones by name, in the order of METRICS."""
        names = [name for name in METRICS if name in chosen(self.config)]
        return {name: partial(self.benchmark, name) if name in BENCHMARKS else getattr(self, name) for name in names}
