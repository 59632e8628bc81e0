"""The names of metrics, and which of their values are better. trainer/training/task_metrics.py computes them.

They are called as in scikit-learn. Nothing heavy is imported: a configuration and a report know them too.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

Choice = Callable[[Iterable[float]], float]
"""Picks the best or the worst of some values."""


@dataclass(frozen=True)
class Metric:
    """The meaning of a metric's name.

    Attributes:
        kinds: of the tasks that have it.
        best: `max` if more is better, else `min`.
        meaning: for people, with its unit.
        only_two: whether it takes tasks of two classes alone.
        has_unit: whether it is in the task's unit, so that a mean over tasks may add up GHz and Hartree.
    """

    kinds: tuple[str, ...]
    best: Choice
    meaning: str
    only_two: bool = False
    has_unit: bool = False

    @property
    def worst(self) -> Choice:
        """Return the opposite of `best`."""
        return min if self.best is max else max


CLASSIFICATION = ("classification",)
REGRESSION = ("regression",)

METRICS: Mapping[str, Metric] = {
    "accuracy": Metric(CLASSIFICATION, max, "fraction of right answers"),
    "majority_accuracy": Metric(CLASSIFICATION, max, "accuracy of always answering the most frequent class"),
    "balanced_accuracy": Metric(CLASSIFICATION, max, "mean over the classes of the fraction that is found"),
    "f1": Metric(CLASSIFICATION, max, "F1 of class 1", only_two=True),
    "f1_macro": Metric(CLASSIFICATION, max, "mean over the classes of their F1"),
    "auroc": Metric(CLASSIFICATION, max, "area under the ROC curve; of more than two classes, the mean of each one's"),
    "average_precision": Metric(CLASSIFICATION, max, "of class 1; of more than two classes, the mean of each one's"),
    "log_loss": Metric(CLASSIFICATION, min, "mean of -log p of the right class, in nats"),
    "calibration_error": Metric(CLASSIFICATION, min, "expected calibration error, over 15 equal bins of confidence"),
    "mae": Metric(("regression", "dense_regression"), min, "mean absolute error, in the task's unit", has_unit=True),
    "rmse": Metric(REGRESSION, min, "root of the mean squared error, in the task's unit", has_unit=True),
    "r2": Metric(REGRESSION, max, "coefficient of determination; 0: as good as always answering the mean"),
    "spearman": Metric(REGRESSION, max, "rank correlation"),
    "miou": Metric(("segmentation",), max, "mean intersection over union of the classes, as a fraction"),
    "pixel_accuracy": Metric(("segmentation",), max, "fraction of labelled pixels with the right answer"),
}

MAX_CURVE_CLASSES = 20
"""With more classes than this, metrics that sort all samples once for each class are computed only where asked for."""

DECIDING: Mapping[str, str] = {
    "classification": "accuracy",
    "regression": "mae",
    "segmentation": "miou",
    "dense_regression": "mae",
}
"""The metric of each kind that decides where the configuration names none. It says the same as the task's error."""


def metrics_of(kind: str, num_classes: int) -> list[str]:
    """Return the metrics that a task gets where the configuration names none.

    Args:
        kind: as in the manifest, such as "classification".
        num_classes: of a classification.
    """
    fits = [
        name for name, metric in METRICS.items() if kind in metric.kinds and (num_classes == 2 or not metric.only_two)
    ]
    return [name for name in fits if num_classes <= MAX_CURVE_CLASSES or name not in ("auroc", "average_precision")]
