"""Right colours and shapes of images generated from easy-VQA's 24 captions (evals/easy_vqa/shapes_and_colors.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evals.easy_vqa.prompts import CAPTIONS
from evals.errors import NotMeasurable
from evals.inputs import Inputs, JobInputs
from evals.json_files import write_json
from evals.metric import Metric
from evals.metrics import METRICS
from evals.sets import EvalSets
from liquid_train.measurement.measurement import Measurement, ModelHandle

FRECHET = ("frechet_distance", "frechet_of_reconstructions", "fid")


@METRICS.register("t2i")
class ColorsAndShapes(Metric):
    """Of easy-VQA only, unless it is asked for by its name."""

    by_default = True
    draws = True
    files = ("t2i.json", "drawn.png")

    def applies(self, sets: EvalSets) -> None:
        if not sets.easy_vqa:
            raise NotMeasurable("the data are not easy-VQA, whose colours and shapes it judges")

    def prepare(self, inputs: Inputs) -> None:
        assert isinstance(inputs, JobInputs)
        _ = inputs.shapes

    def measure(self, handle: ModelHandle, inputs: Inputs) -> Measurement:
        from evals.easy_vqa.shapes_and_colors import shapes_and_colors

        assert isinstance(inputs, JobInputs)
        return shapes_and_colors(
            handle, inputs.generate(CAPTIONS), inputs.shapes, per_prompt=self.job.images_per_prompt
        )

    def write(self, folder: Path, step: int | None, found: dict[str, Measurement], inputs: Inputs) -> None:
        """t2i.json, with the Frechet distance where image_quality was measured too, and drawn.png."""
        from liquid_train.generate.images import contact_sheet, save_png

        assert isinstance(inputs, JobInputs)
        pixels = inputs.generate(CAPTIONS).pixels
        save_png(folder / "drawn.png", contact_sheet(list(pixels), columns=self.job.images_per_prompt))
        quality: dict[str, Any] = frechet_summary(found.get("image_quality"))
        write_json(folder / "t2i.json", {"step": step, **found[self.name].detail, **quality})


def frechet_summary(quality: Measurement | None) -> dict[str, Any]:
    """What t2i.json holds of image_quality: nothing unless both were measured."""
    if quality is None:
        return {}
    distances = {key: value.value for key, value in quality.values.items() if key in FRECHET}
    return {
        **distances,
        "frechet_features": quality.provenance.features,
        "frechet_reference": quality.detail["reference"],
    }
