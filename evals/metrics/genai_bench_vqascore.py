"""VQAScore of images generated from GenAI-Bench's prompts, over all and by skill (evals/genai_prompts.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evals.genai_prompts import read_genai_bench
from evals.identity import folder_identity
from evals.inputs import JobInputs
from evals.judges.images import Images
from evals.metrics import METRICS
from evals.metrics.vqascore import VQAScore


@METRICS.register("genai_bench_vqascore")
class GenAIBenchVQAScore(VQAScore):
    """One image a prompt."""

    draws = False
    needs = {"genai_bench": "FOLDER", **VQAScore.needs}

    def identity(self) -> Any:
        return [super().identity(), folder_identity(self.job.genai_bench)]

    def read(self) -> None:
        self.tagged = read_genai_bench(Path(str(self.job.genai_bench)))

    def images(self, inputs: JobInputs) -> Images:
        return Images.of(inputs.one_each([p.text for p in self.tagged]), [p.tags for p in self.tagged])
