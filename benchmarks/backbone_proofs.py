"""What the proof of backbones finds for transformers' model types: `python -m benchmarks.backbone_proofs [TYPE ...]`,
all of them by default. A line of Markdown each, of the type's default config at full size; nothing is downloaded."""

from __future__ import annotations

import sys
import time

import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from liquid_train.errors import UserError
from liquid_train.generate.backbone_proof import prove
from liquid_train.model.architecture import check_model


def line(model_type: str) -> str:
    """| type | largest relative difference, or why it is refused | seconds |"""
    started = time.perf_counter()
    try:
        config = CONFIG_MAPPING[model_type]()
        check_model(config, "backbone")
        found = prove(config)
        verdict = f"right, {found.difference:.0e}" if found.wrong is None else f"refused: {found.wrong}"
    except (UserError, ImportError, ValueError) as error:
        verdict = f"refused: {str(error).removeprefix('backbone: ').strip().splitlines()[-1]}"
    return f"| `{model_type}` | {verdict} | {time.perf_counter() - started:.1f} |"


def main(names: list[str]) -> None:
    transformers.logging.set_verbosity_error()
    print("| model type | proof | seconds |\n|---|---|---|")
    for name in names or [n for n in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if n in CONFIG_MAPPING]:
        print(line(name), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
