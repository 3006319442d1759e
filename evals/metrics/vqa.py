"""Questions about images: exact match, by answer type, next to what the questions alone and shuffled images give.

The blind baseline answers every question with the answer that training gives to its wording most often. Shuffled
images ask the model about the wrong image: a model that looks at images falls to the blind baseline there.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evals.inputs import Inputs
from evals.json_files import write_json
from evals.metric import Metric
from evals.metrics import METRICS
from evals.questions.shard_questions import Question, QuestionSet
from liquid_train.data.shards import ShardSet
from liquid_train.errors import UserError
from liquid_train.measurement.measurement import Measurement, ModelHandle, Value, bare, share
from liquid_train.measurement.provenance import Provenance, arrays_digest, texts_digest

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from liquid_train.training.settings import EvalsConfig
    from liquid_train.vocabulary import Vocabulary

EXAMPLES = 12
BLIND_SAMPLES = 100_000  # of the training set, for the blind baseline


@METRICS.register("vqa")
class ShardQuestions(Metric):
    """Accuracy on the questions of a shard set, next to the baselines."""

    by_default = True
    reads = ("questions", "train")
    while_training = True
    files = ("vqa.json", "examples/*.png")

    def identity(self) -> Any:
        return self.job.max_images

    def prepare(self, inputs: Inputs) -> None:
        _ = inputs.questions
        if not inputs.training:
            _ = inputs.sets.baseline

    def measure(self, handle: ModelHandle, inputs: Inputs) -> Measurement:
        if inputs.training:
            return Measurement(shared_accuracy(handle, inputs.questions), question_provenance(handle, inputs.questions))
        data = VQAData(inputs.questions, inputs.sets.baseline)
        return with_baselines(handle, data, seed=inputs.seed, batch_size=inputs.batch_size)

    def write(self, folder: Path, step: int | None, found: dict[str, Measurement], inputs: Inputs) -> None:
        """vqa.json, and the images of the questions that it shows."""
        from liquid_train.generate.images import decode, save_png

        data = inputs.questions
        numbers = [data.questions[n].image for n in choose_examples(data.questions, inputs.seed)]
        (folder / "examples").mkdir()
        for i, n in enumerate(numbers):  # one by one: their grids may differ
            save_png(folder / example_name(i), decode(inputs.image_tokenizer, data.codes[n][None])[0])
        write_json(folder / "vqa.json", {"step": step, **found[self.name].detail})

    def wanted(self, settings: EvalsConfig) -> bool:
        return settings.vqa_samples > 0


def normal(text: str) -> str:
    return text.strip().lower()


def is_right(given: str, answers: Sequence[str]) -> bool:
    """Exact match with one of the answers, but for case and outer white space."""
    return normal(given) in {normal(a) for a in answers}


def ask(
    model: PreTrainedModel,
    vocabulary: Vocabulary,
    data: QuestionSet,
    *,
    images: Sequence[int] | None = None,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """The model's answer to every question. images: which image is shown in place of image i (default:
    itself)."""
    from liquid_train.data.sequence_pieces import encode_text
    from liquid_train.generate.text_sampler import answer

    # one token more than the longest right answer: a longer answer must not be cut to a right one
    longest = max(
        len(encode_text(vocabulary.tokenizer, " " + a)) for a in {a for q in data.questions for a in q.answers}
    )
    items = [(data.codes[images[q.image] if images is not None else q.image], q.text) for q in data.questions]
    return answer(model, vocabulary, items, max_new_tokens=longest + 1, batch_size=batch_size, progress=progress)


def derangement(count: int, seed: int) -> list[int] | None:
    """A permutation that leaves nothing in its place (one random cycle, Sattolo 1986), or None for a single image."""
    if count < 2:
        return None
    order, random = list(range(count)), np.random.default_rng(seed)
    for i in range(count - 1, 0, -1):
        j = int(random.integers(0, i))
        order[i], order[j] = order[j], order[i]
    return order


def blind_answers(train: ShardSet, questions: Sequence[Question]) -> list[str]:
    """The commonest training answer to each question's wording; the commonest of all for a wording that training
    lacks. Of the first BLIND_SAMPLES samples."""
    by_wording: dict[str, Counter[str]] = defaultdict(Counter)
    overall: Counter[str] = Counter()
    for sample in islice(train, BLIND_SAMPLES):
        for q in sample["info"].get("questions") or ():
            by_wording[normal(q["question"])].update(q["answers"])
            overall.update(q["answers"])
    if not overall:
        raise UserError(
            f"train_shards={train.path}: its samples carry no questions; give the training set of the questions, or "
            "train_shards=null"
        )

    def commonest(counts: Counter[str]) -> str:
        return min(counts, key=lambda a: (-counts[a], a))  # ties: by the alphabet, not by the order of the shards

    fallback = commonest(overall)
    known = {wording: commonest(counts) for wording, counts in by_wording.items()}
    return [known.get(normal(q.text), fallback) for q in questions]


def score(questions: Sequence[Question], given: Sequence[str]) -> dict[str, Any]:
    """{"count", "accuracy", "by_type": {kind: {"count", "accuracy"}}}."""
    right: dict[str, list[bool]] = defaultdict(list)
    for question, text in zip(questions, given, strict=True):
        right[question.kind].append(is_right(text, question.answers))
    everything = [r for kind in right.values() for r in kind]
    by_type = {kind: {"count": len(right[kind]), "accuracy": float(np.mean(right[kind]))} for kind in sorted(right)}
    return {"count": len(everything), "accuracy": float(np.mean(everything)), "by_type": by_type}


def choose_examples(questions: Sequence[Question], seed: int, count: int = EXAMPLES) -> list[int]:
    """Numbers of `count` questions, as many of each type as there can be, about different images where possible."""
    random = np.random.default_rng(seed)
    waiting: dict[str, list[int]] = defaultdict(list)
    for n in random.permutation(len(questions)).tolist():
        waiting[questions[n].kind].append(n)
    chosen: list[int] = []
    while len(chosen) < min(count, len(questions)):
        for kind in sorted(waiting):
            shown = {questions[n].image for n in chosen}
            fresh = next((n for n in waiting[kind] if questions[n].image not in shown), waiting[kind][0])
            waiting[kind].remove(fresh)
            chosen.append(fresh)
            if not waiting[kind]:
                del waiting[kind]
            if len(chosen) == count:
                break
    return chosen


def accuracies(questions: Sequence[Question], right: Sequence[bool] | np.ndarray) -> dict[str, Value]:
    """vqa_accuracy over all questions, and vqa_accuracy_color and the like by type."""
    flags, kinds = np.asarray(right, dtype=bool), np.array([q.kind for q in questions])
    values = {"vqa_accuracy": share(flags)}
    for kind in sorted(set(kinds.tolist())):
        values[f"vqa_accuracy_{kind.replace('/', '_')}"] = share(flags[kinds == kind])
    return values


def shared_accuracy(handle: ModelHandle, data: QuestionSet) -> dict[str, Value]:
    """`accuracies` over all ranks; a collective, every rank asks about its own images."""
    images = set(handle.own(len(data.codes)))
    own = [n for n, q in enumerate(data.questions) if q.image in images]
    right = np.zeros(len(data.questions), dtype=np.int64)
    if own:
        part = QuestionSet(data.codes, [data.questions[n] for n in own], {})
        given = ask(handle.model, handle.vocabulary, part, progress=lambda *p: handle.progress("questions", *p))
        right[own] = [is_right(text, data.questions[n].answers) for n, text in zip(own, given, strict=True)]
    return accuracies(data.questions, handle.gathered(right))


def question_provenance(handle: ModelHandle, data: QuestionSet) -> Provenance:
    texts = [q.text for q in data.questions]
    return Provenance(
        n=len(texts),
        data=arrays_digest(data.codes),
        prompts=texts_digest(texts),
        sampler={"greedy": None},
        dtype=handle.dtype,
    )


@dataclass(frozen=True)
class VQAData:
    """train: for the blind baseline, None for none."""

    questions: QuestionSet
    train: ShardSet | None


def with_baselines(handle: ModelHandle, data: VQAData, *, seed: int, batch_size: int) -> Measurement:
    """Accuracies next to the blind and the shuffled ones. detail: evals/vqa.json without its step. For one process."""
    questions = data.questions.questions
    model, vocabulary = handle.model, handle.vocabulary
    given = ask(
        model, vocabulary, data.questions, batch_size=batch_size, progress=lambda *p: handle.progress("questions", *p)
    )
    result: dict[str, Any] = {
        **score(questions, given),
        "images": len(data.questions.codes),
        "left_out": data.questions.left_out,
    }
    values = accuracies(questions, [is_right(text, q.answers) for q, text in zip(questions, given, strict=True)])
    if data.train is not None:
        blind = score(questions, blind_answers(data.train, questions))
        result |= {"blind_accuracy": blind["accuracy"], "blind_by_type": blind["by_type"]}
        values["vqa_blind_accuracy"] = bare(blind["accuracy"], len(questions), "a baseline")
    images = derangement(len(data.questions.codes), seed)
    if images is not None:
        others = ask(
            model,
            vocabulary,
            data.questions,
            images=images,
            batch_size=batch_size,
            progress=lambda *p: handle.progress("shuffled", *p),
        )
        shuffled = score(questions, others)
        result |= {"shuffled_accuracy": shuffled["accuracy"], "shuffled_by_type": shuffled["by_type"]}
        values["vqa_shuffled_accuracy"] = bare(shuffled["accuracy"], len(questions), "a baseline")
    rows = [(n, questions[n]) for n in choose_examples(questions, seed)]
    result["examples"] = [
        {"image": example_name(i), "question": q.text, "answer": given[n], "truth": q.answers[0], "type": q.kind}
        for i, (n, q) in enumerate(rows)
    ]
    result["examples_note"] = (
        "images as the VQ decodes them from their codes: what the model sees, not the original files"
    )
    left_out = data.questions.left_out
    warnings = [f"{sum(left_out.values())} damaged samples are not in these numbers: {left_out}"] if left_out else []
    return Measurement(values, question_provenance(handle, data.questions), result, warnings)


def example_name(number: int) -> str:
    return str(Path("examples") / f"{number:03d}.png")
