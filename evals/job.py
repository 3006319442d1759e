"""`liquid eval`: one evaluation, or, with watch=RUN, one of each checkpoint of a run as it comes."""

from __future__ import annotations

from evals.settings import EvalJob


def run(config: EvalJob) -> None:
    """Raises UserError for a user's mistake, before the model is loaded where that can be told."""
    if config.watch is not None:
        from evals.watch import watch

        watch(config)
    else:
        from evals.run import run as evaluate_once

        evaluate_once(config)
