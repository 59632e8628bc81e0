"""Metrics of classifications that are alike, all at once: several tasks of as many classes.

They are as scikit-learn defines them, which a test checks one by one. NumPy's calls on the few hundred samples of one
task would take longer than what they compute, so each call is for the labelled samples of all tasks.

Shapes: T tasks, N samples, C classes, K labelled samples of all tasks, one task after another; P the positive ones
among them, in the order of their scores within each task.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import numpy as np

NUM_BINS = 15
"""Bins of the calibration error (Guo et al. 2017, arXiv 1706.04599)."""


def class_metrics(probabilities_CTN: np.ndarray, labels_TN: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the metrics `names`, (T,) each; NaN where one is not defined.

    AUROC and average precision of more than two classes are means over the classes that have both positive and negative
    samples. They, and the F1 of class 1, are not defined without such samples.

    Args:
        probabilities_CTN: of the classes, float32.
        labels_TN: class indices; a negative one is no label.
        names: of the metrics.
    """
    answers = _Answers(probabilities_CTN, labels_TN)
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN: not defined.
        return {name: np.where(answers.is_finite_T, _METRICS[name](answers), np.nan) for name in names}


class _Answers:
    """Probabilities and labels of the samples that have a label, and what several metrics count in them."""

    def __init__(self, probabilities_CTN: np.ndarray, labels_TN: np.ndarray) -> None:
        num_classes, self.num_tasks, num_samples = probabilities_CTN.shape
        known_K = np.flatnonzero(labels_TN >= 0)
        self.task_K = known_K // num_samples
        self.label_K = labels_TN.reshape(-1)[known_K].astype(np.int64)
        self.probabilities = [each_TN.reshape(-1).take(known_K) for each_TN in probabilities_CTN]
        """Those of each class, (K,)."""
        self.highest_K, self.answer_K = _highest(self.probabilities)
        self.is_finite_T = np.bincount(self.task_K[~np.isfinite(self.highest_K)], minlength=self.num_tasks) == 0
        cell_K = (self.task_K * num_classes + self.label_K) * num_classes + self.answer_K
        counts = np.bincount(cell_K, minlength=self.num_tasks * num_classes**2)
        self.confusion_TCC = counts.reshape(self.num_tasks, num_classes, num_classes)
        """Samples by label, then by answer."""
        self.count_T = self.confusion_TCC.sum(axis=(1, 2))

    def total(self, values_K: np.ndarray) -> np.ndarray:
        """Return the sums over the samples of each task, (T,)."""
        return np.bincount(self.task_K, values_K, self.num_tasks)

    @cached_property
    def right(self) -> np.ndarray:
        """Samples of each class that were answered by it, (T, C)."""
        return self.confusion_TCC.diagonal(axis1=1, axis2=2)

    @cached_property
    def f1_of_each(self) -> np.ndarray:
        """F1, (T, C); NaN for one that is neither in a label nor in an answer."""
        in_either_TC = self.confusion_TCC.sum(axis=1) + self.confusion_TCC.sum(axis=2)
        return 2.0 * self.right / in_either_TC

    @cached_property
    def areas(self) -> np.ndarray:
        """AUROC and average precision, (T, 2): of class 1 of two, or means over the classes."""
        num_classes = len(self.probabilities)
        classes = [1] if num_classes == 2 else range(num_classes)
        each = [areas(self.probabilities[one], self.label_K == one, self.task_K, self.num_tasks) for one in classes]
        return mean_of_defined(np.stack(each), axis=0)


def _highest(probabilities: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the highest probability of each sample, NaN where one is, and the first class that has it."""
    highest_K, answer_K = probabilities[0], np.zeros(len(probabilities[0]), dtype=np.int64)
    for one, probability_K in enumerate(probabilities[1:], 1):
        answer_K = np.where(probability_K > highest_K, one, answer_K)
        highest_K = np.maximum(highest_K, probability_K)
    return highest_K, answer_K


def areas(score_K: np.ndarray, is_positive_K: np.ndarray, task_K: np.ndarray, num_tasks: int) -> np.ndarray:
    """Return the areas under the ROC curves (by trapezoids) and the precision-recall curves (by steps).

    Both are means over the positive samples. The first one is of the fraction of negative samples with a lower score,
    where an equal score counts half (Mann & Whitney 1947). The second one is of the precision among the samples whose
    score is at least that of the positive one.

    Args:
        score_K: float32, 0 or more.
        is_positive_K: which samples are positive.
        task_K: their tasks.
        num_tasks: T.

    Returns:
        (T, 2); NaN where all samples are positive, or none is.
    """
    # The bits of numbers that are 0 or more, read as integers, are in the order of the numbers. With the task's number
    # before them, one sort and one search are for all tasks.
    key_K = (task_K << 32) + score_K.view(np.uint32)
    positive_P, negative = np.sort(key_K[is_positive_K]), np.sort(key_K[~is_positive_K])
    lower_P = np.searchsorted(negative, positive_P)
    not_higher_P = np.searchsorted(negative, positive_P, side="right")
    first_P = np.searchsorted(positive_P, positive_P)
    task_P, bounds = positive_P >> 32, np.arange(num_tasks + 1) << 32
    of_positive, of_negative = np.searchsorted(positive_P, bounds), np.searchsorted(negative, bounds)
    right_P = of_positive[task_P + 1] - first_P
    wrong_P = of_negative[task_P + 1] - lower_P
    below_P = (lower_P + not_higher_P) / 2 - of_negative[task_P]
    sums = [np.bincount(task_P, values_P, num_tasks) for values_P in (below_P, right_P / (right_P + wrong_P))]
    num_positive_T, num_negative_T = np.diff(of_positive), np.diff(of_negative)
    means = np.stack(sums, axis=1) / num_positive_T[:, None]
    means[:, 0] /= num_negative_T
    means[num_negative_T == 0] = np.nan
    return means


def _balanced_accuracy(answers: _Answers) -> np.ndarray:
    return mean_of_defined(answers.right / answers.confusion_TCC.sum(axis=2), axis=1)


def _log_loss(answers: _Answers) -> np.ndarray:
    right_K = np.stack(answers.probabilities)[answers.label_K, np.arange(len(answers.label_K))]
    losses_K = -np.log(right_K.astype(np.float64).clip(min=np.finfo(np.float32).eps))
    return answers.total(losses_K) / answers.count_T


def _calibration_error(answers: _Answers) -> np.ndarray:
    confidence_K = np.nan_to_num(answers.highest_K.astype(np.float64))
    bin_K = np.minimum(confidence_K * NUM_BINS, NUM_BINS - 1).astype(np.int64) + NUM_BINS * answers.task_K
    gap_K = (answers.answer_K == answers.label_K) - confidence_K
    gaps = np.bincount(bin_K, gap_K, NUM_BINS * answers.num_tasks).reshape(-1, NUM_BINS)
    return np.abs(gaps).sum(axis=1) / answers.count_T


_METRICS: Mapping[str, Callable[[_Answers], np.ndarray]] = {
    "accuracy": lambda answers: answers.right.sum(axis=1) / answers.count_T,
    "majority_accuracy": lambda answers: answers.confusion_TCC.sum(axis=2).max(axis=1) / answers.count_T,
    "balanced_accuracy": _balanced_accuracy,
    "f1": lambda answers: answers.f1_of_each[:, 1],
    "f1_macro": lambda answers: mean_of_defined(answers.f1_of_each, axis=1),
    "auroc": lambda answers: answers.areas[:, 0],
    "average_precision": lambda answers: answers.areas[:, 1],
    "log_loss": _log_loss,
    "calibration_error": _calibration_error,
}


def mean_of_defined(values: np.ndarray, axis: int) -> np.ndarray:
    """Return the mean of the values that are not NaN; NaN where all are."""
    defined = ~np.isnan(values)
    return values.sum(axis=axis, where=defined) / defined.sum(axis=axis)
