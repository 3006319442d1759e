"""What a published benchmark of questions about images is: a metric that reads questions from files. One file of
evals/benchmarks/ registers a subclass; a user's own is named by its import path.

    read_questions  the files -> questions with their images and right answers
    scores          one answer a question -> numbers; by default the share of answers that are right word for word
    prediction_files, read_answers          answers as the benchmark's server or program takes them; by default one JSON
                                            list of {id_key, answer_key}

Its files are those of benchmarks.NAME, where BenchmarksConfig has it, else of own.NAME: any keys that it reads, and
`predictions`, somebody's answers, which are scored without a model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar

from evals.identity import folder_identity
from evals.inputs import Inputs
from evals.json_files import named, read_published
from evals.metric import Metric
from evals.questions.answer_files import Answer, match_answers, pairs
from evals.questions.collector import BenchmarkQuestion, BenchmarkSet, Collector, check_left_out, images_in
from liquid_train.errors import UserError
from liquid_train.measurement.measurement import Measurement, ModelHandle, Value, share
from liquid_train.measurement.provenance import Provenance, arrays_digest, texts_digest


class Benchmark(Metric):
    """One published benchmark."""

    paths: ClassVar[tuple[str, ...]] = ("questions", "images")  # keys of its files, without which nothing is measured
    id_key: ClassVar[str] = "question_id"  # of a row of the prediction file
    answer_key: ClassVar[str] = "answer"

    def read_questions(self) -> Collector:
        """Raises UserError for files that are missing or of another format."""
        raise NotImplementedError(f"{type(self).__name__}.read_questions")

    def scores(self, items: Sequence[BenchmarkQuestion], given: Sequence[str]) -> dict[str, Value]:
        """Numbers by name. given: one answer an item."""
        right = [
            text.strip().lower() in {answer.strip().lower() for answer in item.answers}
            for item, text in zip(items, given, strict=True)
        ]
        return {self.name: share(right)}

    def prediction_files(self, items: Sequence[BenchmarkQuestion], given: Sequence[str]) -> dict[str, str]:
        """{file name: content} as the benchmark's server or program reads them."""
        rows = [{self.id_key: item.id, self.answer_key: text} for item, text in zip(items, given, strict=True)]
        return {f"{self.name}.json": json.dumps(rows, ensure_ascii=False)}

    def read_answers(self, path: Path, benchmark: BenchmarkSet, collector: Collector) -> list[Answer]:
        """What `prediction_files` writes, of somebody else's model: (key of its question, answer)."""
        rows = read_published(path)
        if not isinstance(rows, list):
            form = f"{{{self.id_key!r}, {self.answer_key!r}}}"
            raise UserError(f"{path}: not a list of {form}; give the file that the server takes")
        return pairs(rows, self.id_key, self.answer_key, collector)

    def question_key(self, item: BenchmarkQuestion) -> str:
        """What `read_answers` calls a question."""
        return str(item.id)

    def whole(self, items: list[BenchmarkQuestion], collector: Collector) -> list[BenchmarkQuestion]:
        """Those of the answered questions that can be scored; the others are noted."""
        return items

    def warnings(self, benchmark: BenchmarkSet) -> list[str]:
        """What a reader of the numbers must know."""
        lines = [f"left out: {reason}: {named(names)}" for reason, names in benchmark.left_out.items()]
        if self.job.benchmarks.max_questions is not None:
            lines.append(
                f"only the first {len(benchmark.items)} questions (benchmarks.max_questions): not the published score"
            )
        if not benchmark.labelled:
            lines.append("the files hold no answers: no score, only the prediction file for the server")
        return lines

    @property
    def key(self) -> str:
        """Of its files in the config."""
        return f"benchmarks.{self.name}" if hasattr(self.job.benchmarks, self.name) else f"own.{self.name}"

    @property
    def given_paths(self) -> dict[str, Any]:
        """Its files by key."""
        return asdict(getattr(self.job.benchmarks, self.name)) if self.key.startswith("benchmarks.") else self.own

    def path(self, key: str) -> Path:
        """The file or folder of a key. Raises UserError where it has no value."""
        value = self.given_paths.get(key)
        if value is None:
            raise UserError(f"{self.key}.{key} has no value; give {self.key}.{key}=PATH")
        return Path(str(value))

    def images(self, name: Callable[[Path], str] = lambda path: path.stem) -> dict[str, Path] | None:
        """Files of the folder `images` by name(file); None where it has no value and there is a file of answers."""
        if self.given_paths.get("images") is None and self.given_paths.get("predictions") is not None:
            return None
        return images_in(self.path("images"), name)

    def not_given(self) -> list[str]:
        return [f"{self.key}.{path}" for path in self.paths if self.given_paths.get(path) is None]

    def check(self) -> None:
        """A file that is missing is told where it is read, by its key."""

    def identity(self) -> Any:
        config = self.job.benchmarks
        shared = [config.suffix, config.max_new_tokens, config.max_bad, config.max_questions]
        values = self.given_paths
        files = [str(value) for value in values.values() if isinstance(value, str) and Path(value).exists()]
        return [shared, values, folder_identity(*files)]

    def read(self) -> None:
        self.benchmark = self.read_set()

    def read_set(self) -> BenchmarkSet:
        """Raises UserError for files that are missing or of another format, and where more must be left out than
        benchmarks.max_bad allows."""
        collector = self.read_questions()
        benchmark = BenchmarkSet(self.name, self.key, collector.items, collector.left_out)
        check_left_out(benchmark, self.job.benchmarks.max_bad)
        return benchmark

    def measure(self, handle: ModelHandle, inputs: Inputs) -> Measurement:
        """Scores, none where right answers are not published. detail: {"files": {name: text}}. Raises UserError where
        more images cannot be read than benchmarks.max_bad allows."""
        return self.ask(handle, self.benchmark, inputs.batch_size)

    def ask(self, handle: ModelHandle, benchmark: BenchmarkSet, batch_size: int) -> Measurement:
        """The measured model's greedy answers, scored. For one process."""
        from evals.questions.image_codes import with_codes
        from liquid_train.generate.text_sampler import answer

        config = self.job.benchmarks
        if config.max_questions is not None:
            benchmark = replace(benchmark, items=benchmark.items[: config.max_questions])
        benchmark, codes = with_codes(handle, benchmark, config.max_bad)
        asked = [(codes[item.image], item.question + config.suffix) for item in benchmark.items]
        given = answer(
            handle.model,
            handle.vocabulary,
            asked,
            max_new_tokens=config.max_new_tokens,
            batch_size=batch_size,
            progress=lambda *p: handle.progress(self.name, *p),
        )
        return self.answered(
            benchmark,
            given,
            data=arrays_digest(list(codes.values())),
            prompts=texts_digest([text for _, text in asked]),
            sampler={"greedy": None, "max_new_tokens": config.max_new_tokens},
            dtype=handle.dtype,
            files=self.prediction_files(benchmark.items, given),
        )

    def answered(
        self, benchmark: BenchmarkSet, given: Sequence[str], *, data: str, files: dict[str, str], **provenance: Any
    ) -> Measurement:
        """The scores of one answer an item, none where right ones are not published.

        data: digest of the images, or what the answers came from. provenance: its other parts. files: {name: text},
        what the measurement leaves next to its numbers.
        """
        values = self.scores(benchmark.items, given) if benchmark.labelled else {}
        items = benchmark.items
        truth = texts_digest([str(part) for item in items for part in (item.id, len(item.answers), *item.answers)])
        if benchmark.left_out:
            left_out = json.dumps(benchmark.left_out, indent=1, ensure_ascii=False)
            files = {**files, f"{self.name}-left_out.json": left_out}
        about = Provenance(n=len(given), data=f"{data} {truth}", **provenance)
        return Measurement(values, about, {"files": files}, self.warnings(benchmark))

    def scores_files(self) -> str | None:
        return f"{self.key}.predictions" if self.given_paths.get("predictions") is not None else None

    def score(self) -> Measurement:
        path = self.path("predictions")
        if not path.exists():
            raise UserError(
                f"{self.key}.predictions={path}: no such file or folder; give the answers as the server or program "
                "takes them"
            )
        benchmark = self.read_set()
        if not benchmark.labelled:
            raise UserError(
                f"{self.key}: its files hold no answers to score with; such a split is scored by the server alone"
            )
        matched, given = self.match(benchmark, path)
        return self.answered(
            matched,
            given,
            data="images not looked at",
            prompts=texts_digest([item.question for item in matched.items]),
            features="answers from a file",
            files={},
        )

    def match(self, benchmark: BenchmarkSet, path: Path) -> tuple[BenchmarkSet, list[str]]:
        """(the questions that have one answer in the file, the answers in their order)."""
        config = self.job.benchmarks
        if config.max_questions is not None:
            raise UserError(
                f"benchmarks.max_questions={config.max_questions}: a file of answers is scored whole; leave it out"
            )
        collector = Collector(None, left_out={reason: list(names) for reason, names in benchmark.left_out.items()})
        found = self.read_answers(path, benchmark, collector)
        items, given = match_answers(benchmark, found, self.question_key, self.whole, collector)
        matched = replace(benchmark, items=items, left_out=collector.left_out)
        check_left_out(matched, config.max_bad)
        return matched, given
