"""Metrics of one task, from its predictions and labels, or from counts. trainer/config/metrics.py lists their names.

They are as scikit-learn defines them, which a test checks one by one. It is not called here: its import would take
longer than many an evaluation, and 1 ms a metric and task, where NumPy takes a twentieth.

Shapes: N labelled samples, or ratios of a task with a target for every pixel; C classes, K thresholds.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from torch import Tensor

from models import Classification, Task
from trainer.training.collect import Predicted

NUM_BINS = 15
"""Bins of the calibration error (Guo et al. 2017, arXiv 1706.04599)."""

Found = dict[str, float | None]
"""Metric -> value; None where it is not defined."""


def sample_metrics(task: Task, predicted: Predicted | None, names: Sequence[str]) -> Found:
    """Return metrics of a task with one target a sample; all None where predictions were not collected."""
    if predicted is None:
        return dict.fromkeys(names)
    answers_NC, labels_N = predicted.answers[task.name], predicted.labels[task.name]
    if isinstance(task, Classification):
        return classification_metrics(answers_NC, labels_N, names)
    return regression_metrics(answers_NC[:, 0], labels_N, names, task.scale)


def pixel_metrics(task: Task, sums_N: Tensor, counts_N: Tensor, names: Sequence[str]) -> Found:
    """Return metrics of a task with a target for every pixel.

    Args:
        task: a segmentation or a dense regression.
        sums_N: of its measure, over all samples: of a segmentation, the pixels in the intersection of each class.
        counts_N: likewise: of a segmentation, the pixels in the union.
        names: of the metrics.
    """
    if not counts_N.any():
        return dict.fromkeys(names)
    ratio = float((sums_N[counts_N > 0] / counts_N[counts_N > 0]).mean())
    # Each labelled pixel is in the union of its label's class and of its answer's, which are one where it is right.
    pixels = float(counts_N.sum() + sums_N.sum()) / 2
    found = {"mae": task.scale * ratio, "miou": ratio, "pixel_accuracy": float(sums_N.sum()) / pixels}
    return {name: found[name] for name in names}


def classification_metrics(probabilities_NC: np.ndarray, labels_N: np.ndarray, names: Sequence[str]) -> Found:
    """Return the metrics `names` of a classification; None where one is not defined.

    AUROC and average precision of more than two classes are means over the classes that have both positive and negative
    samples. They, and the F1 of class 1, are not defined without such samples.

    Args:
        probabilities_NC: of the classes.
        labels_N: class indices; a negative one is no label.
        names: of the metrics.
    """
    known_N = labels_N >= 0
    answers = _Answers(probabilities_NC[known_N].astype(np.float64), labels_N[known_N].astype(np.int64))
    if not known_N.any() or not np.isfinite(answers.probabilities_NC).all():
        return dict.fromkeys(names)
    return {name: _defined(_CLASSIFICATION[name](answers)) for name in names}


def regression_metrics(answers_N: np.ndarray, labels_N: np.ndarray, names: Sequence[str], scale: float) -> Found:
    """Return the metrics `names` of a regression; None where one is not defined.

    Args:
        answers_N: standardised numbers.
        labels_N: standardised numbers; NaN is no label.
        names: of the metrics.
        scale: factor from standardised numbers to the unit of `mae` and `rmse`.
    """
    known_N = ~np.isnan(labels_N)
    pairs = scale * answers_N[known_N].astype(np.float64), scale * labels_N[known_N].astype(np.float64)
    if not known_N.any() or not np.isfinite(pairs[0]).all():
        return dict.fromkeys(names)
    return {name: _defined(_REGRESSION[name](pairs)) for name in names}


class _Answers:
    """Probabilities of the labelled samples, and what several metrics count in them."""

    def __init__(self, probabilities_NC: np.ndarray, labels_N: np.ndarray) -> None:
        num_classes = probabilities_NC.shape[1]
        self.probabilities_NC = probabilities_NC
        self.labels_N = labels_N
        self.answers_N = probabilities_NC.argmax(axis=1)
        pairs_N = num_classes * labels_N + self.answers_N
        self.confusion_CC = np.bincount(pairs_N, minlength=num_classes**2).reshape(num_classes, num_classes)
        """Samples by label, then by answer."""
        self._areas: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels_N)

    @property
    def f1_of_each(self) -> np.ndarray:
        """F1 of each class; NaN for one that is neither in a label nor in an answer."""
        in_either_C = self.confusion_CC.sum(axis=0) + self.confusion_CC.sum(axis=1)
        return _ratio(2.0 * self.confusion_CC.diagonal(), in_either_C)

    @property
    def areas(self) -> np.ndarray:
        """AUROC and average precision, (2,): of class 1 of two, or means over the classes; NaN where not defined."""
        if self._areas is None:
            classes = [1] if len(self.confusion_CC) == 2 else range(len(self.confusion_CC))
            each = [_areas(self.labels_N == one, self.probabilities_NC[:, one]) for one in classes]
            defined = [areas for areas in each if not np.isnan(areas).any()]
            self._areas = np.mean(defined, axis=0) if defined else np.full(2, np.nan)
        return self._areas


def _areas(is_class_N: np.ndarray, scores_N: np.ndarray) -> np.ndarray:
    """Return the areas under the ROC curve (by trapezoids) and the precision-recall curve (by steps)."""
    if is_class_N.all() or not is_class_N.any():
        return np.full(2, np.nan)
    order_N = np.argsort(-scores_N)
    # Samples with equal scores are on the same side of every threshold.
    last_K = np.append(np.flatnonzero(np.diff(scores_N[order_N])), len(order_N) - 1)
    right_K = np.cumsum(is_class_N[order_N])[last_K]
    found_K, precision_K = right_K / right_K[-1], right_K / (last_K + 1)
    wrong_K = last_K + 1 - right_K
    auroc = np.trapezoid(np.append(0.0, found_K), np.append(0.0, wrong_K / wrong_K[-1]))
    return np.array([auroc, np.sum(np.diff(found_K, prepend=0.0) * precision_K)])


def _accuracy(answers: _Answers) -> float:
    return answers.confusion_CC.trace() / len(answers)


def _majority_accuracy(answers: _Answers) -> float:
    return answers.confusion_CC.sum(axis=1).max() / len(answers)


def _balanced_accuracy(answers: _Answers) -> float:
    return float(np.nanmean(_ratio(answers.confusion_CC.diagonal(), answers.confusion_CC.sum(axis=1))))


def _log_loss(answers: _Answers) -> float:
    right_N = np.take_along_axis(answers.probabilities_NC, answers.labels_N[:, None], axis=1)
    return float(-np.log(right_N.clip(min=np.finfo(np.float32).eps)).mean())


def _calibration_error(answers: _Answers) -> float:
    confidence_N = answers.probabilities_NC.max(axis=1)
    bins_N = np.minimum((confidence_N * NUM_BINS).astype(int), NUM_BINS - 1)
    gaps_N = (answers.answers_N == answers.labels_N) - confidence_N
    return float(np.abs(np.bincount(bins_N, weights=gaps_N)).sum() / len(answers))


_CLASSIFICATION: Mapping[str, Callable[[_Answers], float]] = {
    "accuracy": _accuracy,
    "majority_accuracy": _majority_accuracy,
    "balanced_accuracy": _balanced_accuracy,
    "f1": lambda answers: answers.f1_of_each[1],
    "f1_macro": lambda answers: float(np.nanmean(answers.f1_of_each)),
    "auroc": lambda answers: answers.areas[0],
    "average_precision": lambda answers: answers.areas[1],
    "log_loss": _log_loss,
    "calibration_error": _calibration_error,
}

_Pairs = tuple[np.ndarray, np.ndarray]
"""Answers and labels."""


def _r2(pairs: _Pairs) -> float:
    answers_N, labels_N = pairs
    return float(1 - _ratio(np.square(answers_N - labels_N).sum(), np.square(labels_N - labels_N.mean()).sum()))


def _spearman(pairs: _Pairs) -> float:
    if any(np.ptp(values_N) == 0 for values_N in pairs):
        return np.nan
    return float(np.corrcoef(_ranks(pairs[0]), _ranks(pairs[1]))[0, 1])


def _ranks(values_N: np.ndarray) -> np.ndarray:
    """Return the rank of each value; equal values share the mean of theirs."""
    _, places_N, counts = np.unique(values_N, return_inverse=True, return_counts=True)
    shared: np.ndarray = (np.cumsum(counts) - (counts - 1) / 2)[places_N]
    return shared


_REGRESSION: Mapping[str, Callable[[_Pairs], float]] = {
    "mae": lambda pairs: np.abs(pairs[0] - pairs[1]).mean(),
    "rmse": lambda pairs: np.sqrt(np.square(pairs[0] - pairs[1]).mean()),
    "r2": _r2,
    "spearman": _spearman,
}


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Return above / below, NaN where `below` is 0."""
    return np.divide(above, below, out=np.full(np.shape(below), np.nan), where=np.asarray(below) != 0)
