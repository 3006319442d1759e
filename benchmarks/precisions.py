"""What bf16 and int8 weights cost in quality and take in memory, against fp32: `python -m benchmarks.precisions RUN`.

Every precision sees the same images, drawn in fp32 (one of each caption of the quickstart): its logits and its
likeliest code at every place are compared with fp32's. Then it generates 240 images of its own, whose colours and
shapes are scored.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from evals.easy_vqa.prompts import CAPTIONS
from evals.easy_vqa.shapes_and_colors import score
from evals.generated import generate_images
from liquid_train.checkpoint.folder import model_folder
from liquid_train.data.sequences import prompt_ids
from liquid_train.generate.image_sampler import sample_images
from liquid_train.generate.session import DTYPES, Session, open_model
from liquid_train.image_tokenizer.opening import open_image_tokenizer
from liquid_train.image_tokenizer.settings import VQSettings
from liquid_train.measurement.measurement import ModelHandle

PER_PROMPT, GUIDANCE, TEMPERATURE = 10, 3.0, 0.8
AUTO = VQSettings(config="auto", checkpoint="auto")


@torch.inference_mode()
def code_logits(session: Session, codes: np.ndarray) -> Tensor:
    """The conditional logits [captions * codes, image ids] at every place of images [captions, rows, columns]."""
    v, found = session.vocabulary, []
    for caption, grid in zip(CAPTIONS, codes, strict=True):
        ids = prompt_ids({"text": caption}, "t2i", v.tokenizer, prompt=session.card.prompt)
        whole = torch.tensor([[*ids, *(grid.ravel() + v.image_start)]], device=session.device)
        found.append(session.model(whole).logits[0, len(ids) - 1 : -1, v.image_start : v.image_end].float().cpu())
    return torch.cat(found)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.precisions", description="Quality and memory of fp32, bf16 and int8."
    )
    parser.add_argument("run", help="a run of the quickstart's images, or a checkpoint of one")
    folder = model_folder(parser.parse_args(argv).run)
    exact, tokenizer = None, None
    print(f"{'':<6}{'MiB':>8}{'layers':>8}{'same code':>11}{'logit error':>13}{'colour':>8}{'shape':>7}")
    for precision in DTYPES:
        session = open_model(folder, "cpu", precision, vq=AUTO)
        if exact is None:
            tokenizer = open_image_tokenizer(session.card.vq, parts=("decoder",))
            images = sample_images(
                session.model,
                session.vocabulary,
                list(CAPTIONS),
                seeds=range(len(CAPTIONS)),
                grid=session.grid,
                suffix=session.card.prompt,
            )
            exact = code_logits(session, images)
        logits = code_logits(session, images)
        same = (logits.argmax(-1) == exact.argmax(-1)).float().mean()
        error = (logits - exact).square().mean().sqrt() / exact.std()
        prompts = [caption for caption in CAPTIONS for _ in range(PER_PROMPT)]
        handle = ModelHandle.of(session, tokenizer)
        generated = generate_images(
            handle, prompts, seed=0, guidance=GUIDANCE, temperature=TEMPERATURE, top_k=None, batch_size=120
        )
        right = score(generated.pixels, PER_PROMPT)
        mib, layers = (
            sum(p.numel() * p.element_size() for p in m.parameters()) / 2**20
            for m in (session.model, session.model.base_model.layers)
        )
        print(
            f"{precision:<6}{mib:>8.2f}{layers:>8.2f}{same:>11.1%}{error:>13.2%}{right['right_color']:>8.1%}{right['right_shape']:>7.1%}"
        )


if __name__ == "__main__":
    main()
