"""What is raised where the data do not allow a metric."""

from __future__ import annotations

from liquid_train.errors import UserError


class NotMeasurable(UserError):
    """The data do not allow this metric. Of metrics that were named it ends the evaluation; of `metrics=[auto]` and
    while training the metric is left out with one line."""
