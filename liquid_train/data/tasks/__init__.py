"""What documents are made of samples, one file a task (DESIGN section 5).

    text   [bos] text [eos]                                                     loss on every token
    t2i    [bos] caption + prompt suffix <boi> codes <eoi> [eos]                loss on codes, eoi, eos
    i2t    [bos] <boi> codes <eoi> The caption of this image is:caption [eos]   loss on caption, eos
    vqa    [bos] <boi> codes <eoi> newline question, space, answer [eos]        loss on answers, eos
    chat   the tokenizer's chat template, <boi> codes <eoi> at <image>          loss on the assistant's turns

The published Liquid collator builds the same ids; a tokenizer without bos begins with none.
A task is a class derived from Task. data.sources.X.task names it: by its file here, or, for one of your own, by its
import path, such as my_module.Rhymes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from liquid_train.data.sequence_pieces import Part, Piece, assemble, bos_ids
from liquid_train.data.settings import DataConfig, SourceConfig
from liquid_train.errors import UserError
from liquid_train.registry import Registry

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from liquid_train.data.shard_format import Sample


@dataclass(frozen=True)
class Generation:
    """How `liquid generate task=NAME` uses a task: what is given, what is generated, and whether a question comes with
    the image that is given."""

    given: Literal["prompt", "image"]
    makes: Literal["image", "text"]
    question: Literal["none", "optional", "required"] = "none"


class Task:
    """What becomes of a source's samples. An instance keeps nothing between two calls.

    A task of your own needs a `name`, `documents` and `pieces`. `fields` is one document's sample: what KEY.json holds,
    `text` and `codes` where the sample has them, and what `documents` and `draw` have put there.
    """

    name: ClassVar[str]  # in loss.weight.NAME, and in metrics: loss/NAME
    # may be cut before any token to fill a sequence; all others stay whole: shortened or dropped where they are longer
    splittable: ClassVar[bool] = False
    asks_questions: ClassVar[bool] = False  # whether VQA accuracy is measured on its held-out source while training
    generation: ClassVar[Generation | None] = None  # None: `liquid generate` does not offer it

    def check(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise UserError where no document can be made with this tokenizer; called once before training."""

    def documents(
        self, sample: Sample, source: SourceConfig, generator: Callable[[], np.random.Generator]
    ) -> list[dict[str, Any]]:
        """The documents that a sample makes in one epoch: for each, the fields that are its alone; none where the
        sample lacks what the task needs. generator(): keyed by source, epoch and sample."""
        raise NotImplementedError

    def expected(self, rows: np.ndarray, source: SourceConfig) -> np.ndarray:
        """How many documents each sample makes, int64 [n], by its row in samples.npy (sample_table.py): tells how far a
        pass over the source has come, and nothing else."""
        return np.ones(len(rows), np.int64)

    def shortest(self, rows: int, columns: int, data: DataConfig, tokenizer: PreTrainedTokenizerBase) -> int:
        """Tokens of the shortest document that an image of this grid can make; a lower bound where that is not
        known."""
        return rows * columns + 2  # <boi> and <eoi>

    def draw(self, fields: dict[str, Any], data: DataConfig, generator: np.random.Generator) -> None:
        """Make one document's random choices, into `fields`. generator: keyed by source, epoch and sample. Raises
        BadSample where there is nothing to choose from."""

    def prompt_ids(self, fields: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """What a document begins with before anything is to be predicted: what a trained model continues."""
        return bos_ids(tokenizer)

    def pieces(self, fields: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[Piece]:
        """The document without its eos: ids, and whether they carry loss. Raises BadSample for a sample that makes
        none."""
        raise NotImplementedError

    def sequence(
        self, fields: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, *, append_eos: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """The whole document: ids and labels (not shifted, -100 without loss), both int64 [n]."""
        eos: list[Piece] = [([tokenizer.eos_token_id], True)] if append_eos else []
        return assemble([*self.pieces(fields, tokenizer), *eos])

    def shorten(self, fields: dict[str, Any], excess: int, tokenizer: PreTrainedTokenizerBase) -> str | None:
        """Make a document of data.seq_len + excess tokens shorter, in `fields`: what was done, to be counted; None
        where it cannot be done, and the document is dropped."""
        return None

    def continued(self, prompt: Sequence[Part], tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Ids that text is generated after, of a prompt with images between its words (generation.given="prompt")."""
        if not all(isinstance(part, str) for part in prompt):
            raise UserError(f"task={self.name}: its prompts have no place for <image:FILE>; leave it out")
        return self.prompt_ids({"text": "".join(map(str, prompt))}, tokenizer)

    def end(self, tokenizer: PreTrainedTokenizerBase) -> int | None:
        """The token that ends generated text, next to eos."""
        return None


TASKS: Registry[type[Task]] = Registry("liquid_train.data.tasks", "task")

# The numbers of tasks in arrays begin with these, in this order, whatever a config names.
FIRST = ("text", "t2i", "i2t", "vqa", "chat")
# What the codes of given images count for (data.image_loss): no task of a source, but with a loss and a weight as one.
IMAGE = "image"


def find_task(task: str, key: str) -> Task:
    """An instance of the task that the config key `key` names. UserError where it names none."""
    kind = TASKS.find(task, key)
    if not (isinstance(kind, type) and issubclass(kind, Task)) or not isinstance(getattr(kind, "name", None), str):
        raise UserError(f"{key}={task}: not a subclass of liquid_train.data.tasks.Task with a `name`")
    return kind()


def generating_task(task: str, key: str) -> tuple[Task, Generation]:
    """The task that `liquid generate` is asked for, t2t for text, and how it generates. UserError for one that does
    not."""
    found = find_task("text" if task == "t2t" else task, key)
    if found.generation is None:
        raise UserError(f"{key}={task}: nothing can be generated: the task does not say how (Task.generation)")
    return found, found.generation


def task_names(data: DataConfig) -> tuple[str, ...]:
    """Names of a run's tasks, FIRST, then IMAGE with data.image_loss, then the config's others, sorted: a task's number
    in arrays is its place here.

    Raises UserError for a task that does not exist, and for two of one name.
    """
    first = (*FIRST, IMAGE) if data.image_loss else FIRST
    paths = dict(zip(first, first, strict=True))  # name -> what the config calls it
    for group, sources in (("sources", data.sources), ("heldout", data.heldout)):
        for source_name, source in sources.items():
            if source.task in FIRST:
                continue
            key = f"data.{group}.{source_name}.task"
            name = find_task(source.task, key).name
            if paths.setdefault(name, source.task) != source.task:
                raise UserError(f"{key}={source.task}: its name, {name}, is that of {paths[name]}; give it another")
    return (*first, *sorted(set(paths) - set(first)))
