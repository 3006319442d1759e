"""Self-VQAScore of images generated from GenAI-Bench's prompts, over all and by skill (evals/genai_prompts.py)."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from evals.genai_prompts import read_genai_bench
from evals.identity import folder_identity
from evals.inputs import Inputs, JobInputs
from evals.metric import Metric
from evals.metrics import METRICS
from evals.metrics.self_vqascore import generated_texts, score_generated
from liquid_train.measurement.measurement import Measurement, ModelHandle


@METRICS.register("genai_bench")
class GenAIBench(Metric):
    """One image a prompt."""

    needs = {"genai_bench": "FOLDER with GenAI-Bench's files"}

    def identity(self) -> Any:
        return [asdict(self.job.vqascore), folder_identity(self.job.genai_bench)]

    def read(self) -> None:
        self.tagged = read_genai_bench(Path(str(self.job.genai_bench)))

    def measure(self, handle: ModelHandle, inputs: Inputs) -> Measurement:
        assert isinstance(inputs, JobInputs)
        generated = inputs.one_each([p.text for p in self.tagged])
        texts = generated_texts(generated, [p.tags for p in self.tagged])
        measured = score_generated(handle, texts, inputs.vqascore, seed=inputs.seed)
        renamed = {key.replace("self_vqascore", self.name, 1): value for key, value in measured.values.items()}
        return Measurement(renamed, measured.provenance)
