"""The jobs of the command line: where the settings of each are declared, and what runs it. Nothing is imported here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """settings, entry: "module:name" of the dataclass, and of the function that is called with one of it (for training:
    also with the command line, which the ranks read again)."""

    settings: str
    entry: str
    takes_arguments: bool = False


JOBS = {
    "tokenize": Job("data_prep.settings:TokenizeJob", "data_prep.tokenize:run"),
    "train": Job("liquid_train.config.schema:TrainJob", "liquid_train.launcher:launch", takes_arguments=True),
    "eval": Job("evals.settings:EvalJob", "evals.run:run"),
    "generate": Job("liquid_train.generate.settings:GenerateJob", "liquid_train.generate.job:run"),
    "serve": Job("liquid_train.serve.settings:ServeJob", "liquid_train.serve.job:run"),
    "plan": Job("liquid_train.config.schema:PlanJob", "liquid_train.scaling.planner:run"),
}
