"""A proof, for any architecture, that decoding step by step with a cache gives the logits of the whole sequence."""

from __future__ import annotations

import torch
from transformers import PreTrainedConfig

from liquid_train.errors import UserError
from liquid_train.generate.decoder import STEM, CachedDecoder
from liquid_train.model.proof import REFUSALS, Unproven, differ, documents, in_short, random_model

PROMPT = 8  # tokens that are read at once, beyond the window of the copy; the others come one by one


@torch.no_grad()
def prove_decoding(config: PreTrainedConfig) -> float:
    """The largest relative difference that was found. config: shrunken. Raises Unproven with what does not hold."""
    model = random_model(config, "eager").eval()
    ids = documents(config.vocab_size)[0][None]
    whole = model(input_ids=ids, use_cache=False).logits[0, PROMPT - 1 :]
    positions = torch.arange(ids.shape[1])[None]
    try:
        decoder = CachedDecoder(model, 1, ids.shape[1], ids.shape[1])
        branch = torch.full((1, PROMPT), STEM)
        hidden = [decoder.feed(ids[:, :PROMPT], branch, positions[:, :PROMPT])[:, -1]]
        hidden += [decoder.step(ids[:, n : n + 1], positions[:, n : n + 1]) for n in range(PROMPT, ids.shape[1])]
    except (*REFUSALS, UserError, AssertionError) as error:
        raise Unproven(f"it cannot be decoded step by step: {in_short(error)}") from error
    logits = decoder.logits(torch.cat(hidden), 0, config.vocab_size)
    return differ(logits, whole, "decoding with a cache gives other logits than the whole sequence")
