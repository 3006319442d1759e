"""What several metrics measure on, each made once, when it is first asked for.

    sets (evals/sets.py) -> questions, captions, real images          handle (the model) -> generated images

`liquid eval` makes JobInputs, and training makes TrainingInputs (evals/periodic.py): a metric that can be measured in
both reads only what Inputs has.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.easy_vqa.prompts import CAPTIONS, named
from evals.errors import NotMeasurable
from evals.generated import GeneratedImages, generate_images, generate_shared
from evals.judges.caption_pairs import CaptionPairs, other_captions
from evals.questions.shard_questions import QuestionSet, load_questions
from evals.real_images import RealImages, decoded_images, images_of_folder
from evals.sets import EvalSets
from evals.settings import EvalJob
from liquid_train.generate.manifest import text_digest
from liquid_train.generate.request import read_prompts
from liquid_train.measurement.measurement import ModelHandle
from liquid_train.measurement.settings import FeaturesConfig, LanguageConfig, VQAScoreConfig

if TYPE_CHECKING:
    from evals.distances.features import FeatureNetwork
    from evals.easy_vqa.real_images import RealShapes
    from evals.judges.vqa_model import Judge
    from liquid_train.generate.session import Session
    from liquid_train.image_tokenizer.base import ImageTokenizer
    from liquid_train.training.settings import EvalsConfig


class Inputs:
    """What both kinds of evaluation have. training: whether a training measures; then every rank calls everything.

    seed: of whatever is drawn at random. batch_size: of questions and images together.
    """

    training: bool
    seed: int
    batch_size: int
    features: FeaturesConfig
    vqascore: VQAScoreConfig
    language: LanguageConfig

    def __init__(self, handle: ModelHandle, sets: EvalSets) -> None:
        self.handle, self.sets = handle, sets

    @property
    def image_tokenizer(self) -> ImageTokenizer:
        return self.handle.image_tokenizer

    @property
    def question_images(self) -> int | None:
        """The first so many images are asked about; None: all."""
        raise NotImplementedError

    @property
    def caption_images(self) -> int:
        """So many real images whose right and wrong captions are compared."""
        raise NotImplementedError

    @property
    def generated(self) -> GeneratedImages:
        """Images of the prompts. Raises NotMeasurable without prompts, or for a model that has seen no images."""
        raise NotImplementedError

    @property
    def real(self) -> RealImages:
        """What generated images are compared with. Raises NotMeasurable where the data have none."""
        raise NotImplementedError

    def category_of(self, prompt: str) -> str | None:
        """The category of the real images that a prompt asks for, where those have categories."""
        return None

    @cached_property
    def network(self) -> FeatureNetwork:
        """What image distances look through. Raises UserError for a `features.path` that is not what it needs."""
        from evals.distances.features import open_features

        return open_features(self.features, self.image_tokenizer)

    @cached_property
    def questions(self) -> QuestionSet:
        return load_questions(self.sets.get("questions"), self.question_images)

    @cached_property
    def pairs(self) -> CaptionPairs:
        """Real images with right and wrong captions."""
        shards = self.sets.get("captions")
        if not self.sets.easy_vqa:
            return other_captions(shards, self.caption_images)
        from evals.easy_vqa.captions import caption_pairs

        return caption_pairs(shards, self.caption_images, self.seed)


class JobInputs(Inputs):
    """Of `liquid eval`: one process."""

    training = False

    def __init__(self, config: EvalJob, session: Session, handle: ModelHandle, sets: EvalSets) -> None:
        super().__init__(handle, sets)
        self.config, self.session = config, session
        self.seed, self.batch_size = config.seed, config.batch_size
        self.features, self.vqascore, self.language = config.features, config.vqascore, config.language
        self._generated: dict[tuple[str, ...], GeneratedImages] = {}

    @property
    def question_images(self) -> int | None:
        return self.config.max_images

    @property
    def caption_images(self) -> int:
        return self.config.caption_images

    @cached_property
    def generated(self) -> GeneratedImages:
        """images_per_prompt images of each prompt, one prompt after the other."""
        return self.generate(prompts_of(self.config, self.sets))

    def generate(self, prompts: list[str]) -> GeneratedImages:
        """The same of other prompts; made once."""
        key = tuple(prompts)
        if key not in self._generated:
            every = [prompt for prompt in prompts for _ in range(self.config.images_per_prompt)]
            self._generated[key] = self.draw(self.handle, every, self.seed)
        return self._generated[key]

    def one_each(self, prompts: list[str]) -> GeneratedImages:
        """One image a prompt; made once."""
        key = ("one each", *prompts)
        if key not in self._generated:
            self._generated[key] = self.draw(self.handle, prompts, self.seed)
        return self._generated[key]

    def draw(self, handle: ModelHandle, prompts: list[str], seed: int) -> GeneratedImages:
        """One image a prompt, image i with seed + i."""
        c = self.config
        sampler: dict[str, Any] = {"guidance": c.guidance, "temperature": c.temperature, "top_k": c.top_k}
        return generate_images(handle, prompts, seed=seed, batch_size=c.batch_size, **sampler)

    @cached_property
    def shapes(self) -> RealShapes:
        """easy-VQA's test images with their colours and shapes."""
        from evals.easy_vqa.real_images import real_images

        return real_images()

    @cached_property
    def real(self) -> RealImages:
        if self.config.images is not None:
            return images_of_folder(self.handle, Path(self.config.images), self.config.quality_reference)
        if self.sets.easy_vqa:
            shapes, codes = self.shapes, self.questions.codes
            name = f"{len(shapes.pixels)} original test images"
            return RealImages(shapes.pixels, list(shapes.shapes), name, True, codes)
        return decoded_images(self.handle, self.sets.get("images"), self.config.quality_reference)

    def category_of(self, prompt: str) -> str | None:
        """Of easy-VQA: the shape."""
        return named(prompt)[1] if self.config.images is None and self.sets.easy_vqa else None

    @cached_property
    def judge(self) -> Judge:
        """The model of vqascore.model."""
        from evals.judges.vqa_model import open_judge

        return open_judge(self.config.vqascore, self.session.model.device)


class TrainingInputs(Inputs):
    """While training, on every rank: the same questions, prompts and seeds each time.

    count: images to generate. handle: the live model.
    """

    training, seed, batch_size = True, 0, 64

    def __init__(self, config: EvalsConfig, handle: ModelHandle, sets: EvalSets, count: int) -> None:
        super().__init__(handle, sets)
        self.config, self.count = config, count
        self.features, self.vqascore, self.language = config.features, config.vqascore, config.language

    @property
    def question_images(self) -> int | None:
        return self.config.vqa_samples

    @property
    def caption_images(self) -> int:
        return self.config.caption_images

    @cached_property
    def prompts(self) -> list[str]:
        """evals.prompts, else captions of the held-out set. Raises NotMeasurable for none."""
        return self.config.prompts or self.sets.texts(self.config.images)

    @cached_property
    def generated(self) -> GeneratedImages:
        """The prompts in turn; image i has seed i."""
        return generate_shared(self.handle, self.prompts, self.config, self.count)

    @property
    def real(self) -> RealImages:
        shards, count = self.sets.get("images"), self.config.quality_reference
        key = (self.image_tokenizer.fingerprint, str(shards.path), shards.digest, count)
        if key not in _HELD_OUT:  # on all ranks or on none
            _HELD_OUT.clear()
            _HELD_OUT[key] = decoded_images(self.handle, shards, count)
        return _HELD_OUT[key]


# The last ones: every evaluation opens the set anew, and a training compares with the same images every time.
_HELD_OUT: dict[tuple[str, str, str, int], RealImages] = {}


def prompts_of(config: EvalJob, sets: EvalSets) -> list[str]:
    """The file's, easy-VQA's own 24, or captions of the held-out set. Torch-free. Raises NotMeasurable for none."""
    if config.prompts is not None:
        return read_prompts(Path(config.prompts))
    if sets.path("captions") is None:
        raise NotMeasurable(f"no prompts to generate images from: {sets.why}, or prompts=FILE")
    if sets.easy_vqa:
        return list(CAPTIONS)
    return sets.texts(config.max_prompts)


def prompts_identity(config: EvalJob, sets: EvalSets) -> str | None:
    """What tells one list of prompts from another; None for no prompts, which the metric that needs them tells."""
    try:
        return text_digest(json.dumps(prompts_of(config, sets)))
    except NotMeasurable:
        return None
