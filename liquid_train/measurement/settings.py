"""Settings of what both training and `liquid eval` measure."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from string import Formatter
from typing import Annotated, Literal

from liquid_train.config.fields import Section, require, setting
from liquid_train.errors import UserError


@dataclass
class FeaturesConfig(Section):
    """The network that image distances look through (evals/distances/features.py)."""

    kind: Annotated[
        Literal["vq", "inception", "hf"],
        setting("vq: the image tokenizer's encoder, offline; inception (FID); hf (CLIP, DINOv2)"),
    ] = "vq"
    path: Annotated[
        str | None,
        setting("inception: inception-2015-12-05.pt (TorchScript); hf: a model's folder", null="none", is_path=True),
    ] = None
    resize: Annotated[
        Literal["clean", "legacy_pytorch", "legacy_tensorflow"], setting("filter between an image and the network")
    ] = "clean"
    cache: Annotated[
        str | None,
        setting("folder that keeps the features of reference images", null="computed each time", is_path=True),
    ] = None


@dataclass
class QuestionPart(Section):
    """Templates with the names of groups in braces, such as "what color is the {shape}?" and "{color}"."""

    question: Annotated[str, setting("template of a question about one part")] = ""
    answer: Annotated[str, setting("template of its right answer")] = ""


def template_fields(template: str) -> set[str]:
    """Names in braces. Raises ValueError for braces that enclose no name."""
    return {name for _, name, _, _ in Formatter().parse(template) if name is not None}


@dataclass
class VQAScoreConfig(Section):
    """How a model is asked whether an image fits a text, as a whole or by parts (caption_parts.py)."""

    question: Annotated[str, setting("question about a whole text, with {text} where it goes")] = (
        'Does this figure show "{text}"? Please answer yes or no.'
    )
    answer: Annotated[str, setting("the answer whose probability is the score")] = "Yes"
    batch_size: Annotated[int, setting("images asked about together; decides the speed, not the result", ge=1)] = 64
    pattern: Annotated[
        str | None,
        setting(
            "regular expression whose named groups are the parts of a text", null="texts are asked about as a whole"
        ),
    ] = None
    parts: Annotated[
        list[QuestionPart], setting("{question, answer} about each part, with the groups' names in braces")
    ] = field(default_factory=list)

    def check(self, key: str) -> None:
        """The templates fit the pattern, and every text can be asked about."""
        require("{text}" in self.question, f"{key}question={self.question}: must hold {{text}} where the text goes")
        require(
            (self.pattern is None) == (not self.parts),
            f"{key}pattern={self.pattern} and {len(self.parts)} {key}parts: give both, or neither",
        )
        try:
            groups = set(re.compile(self.pattern or "").groupindex)
        except re.error as error:
            raise UserError(f"{key}pattern={self.pattern}: not a regular expression: {error}") from error
        for n, part in enumerate(self.parts):
            here = f"{key}parts[{n}]"
            named = _names(part.question, f"{here}.question", groups) | _names(part.answer, f"{here}.answer", groups)
            require(bool(named), f"{key}parts[{n}]: names no group of {key}pattern, so it fits no text")


def _names(template: str, key: str, groups: set[str]) -> set[str]:
    """Names in a template. Raises UserError for one that is empty, or that names no group of the pattern."""
    require(bool(template.strip()), f"{key} is empty")
    try:
        named = template_fields(template)
    except ValueError as error:
        raise UserError(f"{key}={template}: {error}") from error
    known = ", ".join(sorted(groups)) or "none"
    wrong = ", ".join(sorted(named - groups))
    require(not wrong, f"{key}={template}: {wrong}: no group of {key.partition('parts')[0]}pattern, which has {known}")
    return named


@dataclass
class LanguageConfig(Section):
    """What lm-evaluation-harness is asked for (evals/metrics/language.py)."""

    tasks: Annotated[list[str], setting("its tasks, such as [hellaswag,winogrande,arc_easy,boolq]")] = field(
        default_factory=list
    )
    include_path: Annotated[
        str | None,
        setting(
            "folder of task files (YAML, which may name Python functions: only trusted ones)", null="none", is_path=True
        ),
    ] = None
    shots: Annotated[int | None, setting("solved examples before each question", ge=0, null="as the task says")] = None
    limit: Annotated[int | None, setting("only the first N documents of a task", ge=1, null="all")] = None
    batch_size: Annotated[int, setting("documents together; decides the speed, not the result", ge=1)] = 8


@dataclass
class HeldoutConfig(Section):
    """For metrics=[heldout]: data.heldout of a run's config, with its seq_len, prompts and seed
    (training/heldout.py)."""

    run: Annotated[
        str | None, setting("folder of the run whose config names it", null="the checkpoint's own run", is_path=True)
    ] = None
    whole: Annotated[bool, setting("every sample, not only max_samples of each source")] = False
    batches: Annotated[int | None, setting("only so many micro-batches of packed rows", ge=1, null="all")] = None
