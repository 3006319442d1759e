"""The jobs of the command line: where the settings of each are declared, and what runs it. Nothing is imported here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """settings, entry: "module:name" of the dataclass, and of the function that is called with one of it (for training:
    also with the command line, which the ranks read again). checks: functions that are called with the settings
    once these are composed, and raise UserError: what a package knows that the settings must not import."""

    settings: str
    entry: str
    takes_arguments: bool = False
    checks: tuple[str, ...] = ()


JOBS = {
    "tokenize": Job("data_prep.settings:TokenizeJob", "data_prep.tokenize:run"),
    "train": Job(
        "liquid_train.config.schema:TrainJob",
        "liquid_train.launcher:launch",
        takes_arguments=True,
        checks=("evals.chosen:check_training",),
    ),
    "eval": Job("evals.settings:EvalJob", "evals.job:run", checks=("evals.checks:check_eval",)),
    "generate": Job("liquid_train.generate.settings:GenerateJob", "liquid_train.generate.job:run"),
    "serve": Job("liquid_train.serve.settings:ServeJob", "liquid_train.serve.job:run"),
    "plan": Job("liquid_train.config.schema:PlanJob", "liquid_train.scaling.planner:run"),
}
