"""The images of samples/step-NNNNNNNN.png, drawn while training; of easy-VQA also their right colours and shapes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from evals.generated import GeneratedImages
from evals.inputs import Inputs, TrainingInputs
from evals.json_files import write_json
from evals.metric import Metric
from evals.metrics import METRICS
from liquid_train.errors import UserError
from liquid_train.files import dispensable
from liquid_train.measurement.measurement import Measurement, ModelHandle, Value
from liquid_train.measurement.provenance import Provenance, seeds_text, texts_digest

if TYPE_CHECKING:
    from liquid_train.training.settings import EvalsConfig


@METRICS.register("grid")
class Grid(Metric):
    """While training only; `liquid eval` judges colours and shapes as t2i."""

    draws = True
    while_training = True

    def check(self) -> None:
        raise UserError("metrics: grid is measured while training only; give t2i, or liquid generate for images")

    def measure(self, handle: ModelHandle, inputs: Inputs) -> Measurement:
        """No number but of easy-VQA."""
        generated = grid_images(inputs)
        values: dict[str, Value] = {}
        judge = None
        if inputs.sets.easy_vqa:
            from evals.easy_vqa.shapes_and_colors import JUDGE, right_values

            values, judge = right_values(generated.pixels, generated.prompts), JUDGE
        provenance = Provenance(
            n=len(generated.prompts),
            prompts=texts_digest([*generated.prompts, handle.suffix]),
            seeds=seeds_text(generated.seeds),
            sampler=dict(generated.sampler),
            features=judge,
            dtype=handle.dtype,
        )
        return Measurement(values, provenance)

    def wanted(self, settings: EvalsConfig) -> bool:
        return settings.images > 0

    def images_wanted(self, settings: EvalsConfig) -> int:
        return settings.images

    def write_while_training(self, run_dir: Path, step: int, inputs: Inputs) -> None:
        """samples/step-NNNNNNNN.png, and next to it .json with what it shows."""
        from liquid_train.generate.images import contact_sheet, save_png

        assert isinstance(inputs, TrainingInputs)
        generated, folder = grid_images(inputs), run_dir / "samples"
        with dispensable(f"evals: the images of step {step}"):
            folder.mkdir(parents=True, exist_ok=True)
            columns = math.ceil(math.sqrt(len(generated.prompts)))
            about = {"step": step, "prompts": generated.prompts, "columns": columns, "guidance": inputs.config.guidance}
            partial = folder / f".step-{step:08d}.json.partial"
            write_json(partial, about)
            partial.replace(folder / f"step-{step:08d}.json")
            save_png(folder / f"step-{step:08d}.png", contact_sheet(list(generated.pixels), columns))


def grid_images(inputs: Inputs) -> GeneratedImages:
    """The first evals.images of the generated ones."""
    assert isinstance(inputs, TrainingInputs)
    return inputs.generated.first(inputs.config.images)
