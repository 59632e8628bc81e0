"""The loss and the metrics of each task."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from trainer.config.metrics import METRICS
from trainer.config.section import Section
from trainer.config.sections.limits import MAX_RATE
from trainer.errors import did_you_mean

SETTINGS = {
    "cross_entropy": ("label_smoothing", "class_weights"),
    "focal": ("gamma", "class_weights"),
    "huber": ("delta",),
    "l1": (),
    "l2": (),
}
"""Our losses, and which settings each has."""


def _known(name: str) -> str:
    if name not in METRICS:
        raise ValueError(f"no metric {name!r}{did_you_mean(name, METRICS)} Known: {', '.join(METRICS)}")
    return name


MetricName = Annotated[str, AfterValidator(_known)]
Factor = Annotated[float, Field(ge=0, le=MAX_RATE)]


class TaskConfig(Section):
    """Loss and metrics of a task, of all tasks whose names match a pattern such as `NR-*`, or of a kind, such as
    regression. The key that names a task counts before the first pattern that matches it, and that before its kind.
    """

    loss: str | None = None
    """For classes: cross_entropy or focal (Lin 2017). For numbers: huber, l1 or l2. Or the dotted path of your own
    task: a subclass of models.Classification, Regression, Segmentation or DenseRegression, called as that is. null:
    cross_entropy; huber; for numbers per pixel l1. Losses are means over labelled samples, weighted or not."""
    options: dict[str, Any] = Field({})
    """Keyword arguments of your own task."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """All classes have this share of cross_entropy's target in equal parts."""
    class_weights: Literal["balanced"] | dict[str, Factor] | None = None
    """Factors by which cross_entropy and focal multiply the loss of each class, by its name; 1 where it is not named.
    balanced: n / (C n_c), with n labelled train samples, of which n_c are of the class, and C classes that occur.
    null: 1."""
    gamma: float = Field(2.0, ge=0, le=100)
    """The larger it is, the less focal counts samples whose class is predicted already."""
    delta: float = Field(1.0, gt=0, le=MAX_RATE)
    """huber is linear from this residual on, in standard deviations of the train split."""
    metrics: list[MetricName] | None = Field(None, min_length=1)
    """Names of docs/metrics.md; those that do not fit a task's kind are left out for it. null: all of its kind."""
    decides: MetricName | None = None
    """The metric that decides where runs or checkpoints are compared. null: accuracy, mae or miou."""

    @model_validator(mode="after")
    def _settings_belong_to_the_loss(self) -> Self:
        given = {
            name
            for name in ("label_smoothing", "class_weights", "gamma", "delta", "options")
            if getattr(self, name) != type(self).model_fields[name].default
        }
        of_default = {"label_smoothing", "class_weights", "delta"}
        own = self.loss is not None and any(mark in self.loss for mark in "./:")
        if self.loss is not None and self.loss not in SETTINGS and not own:
            known = ", ".join(SETTINGS)
            raise ValueError(f"no loss {self.loss!r}{did_you_mean(self.loss, SETTINGS)} Known: {known}, or your own")
        fits = of_default if self.loss is None else {"options"} if own else set(SETTINGS[self.loss])
        if wrong := sorted(given - fits):
            owners = [loss for loss, settings in SETTINGS.items() if wrong[0] in settings] or ["your own task"]
            raise ValueError(f"{wrong[0]} has no effect with loss={self.loss}: it belongs to {' and '.join(owners)}")
        return self
