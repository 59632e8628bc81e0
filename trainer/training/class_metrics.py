"""Metrics of classifications that are alike, all at once: several tasks of as many classes.

They are as scikit-learn defines them, which a test checks one by one. NumPy's calls on the few hundred samples of one
task would take longer than what they compute, so each call is for all tasks.

Shapes: T tasks, N samples, C classes, K places where the score changes.
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
    return {name: np.where(answers.is_finite_T, _METRICS[name](answers), np.nan) for name in names}


class _Answers:
    """Probabilities and labels, and what several metrics count in them. A label that is missing is 0 here."""

    def __init__(self, probabilities_CTN: np.ndarray, labels_TN: np.ndarray) -> None:
        num_classes, num_tasks, _ = probabilities_CTN.shape
        self.probabilities_CTN = probabilities_CTN
        self.known_TN = labels_TN >= 0
        self.count_T = self.known_TN.sum(axis=1)
        self.labels_TN = np.where(self.known_TN, labels_TN, 0).astype(np.int64)
        self.highest_TN, self.answers_TN = _highest(probabilities_CTN)
        self.is_finite_T = (np.isfinite(self.highest_TN) | ~self.known_TN).all(axis=1)
        of_task_T1 = np.arange(num_tasks)[:, None]
        pairs_TN = (of_task_T1 * num_classes + self.labels_TN) * num_classes + self.answers_TN
        counts = np.bincount(pairs_TN[self.known_TN], minlength=num_tasks * num_classes**2)
        self.confusion_TCC = counts.reshape(num_tasks, num_classes, num_classes)
        """Samples by label, then by answer."""

    @cached_property
    def confidence(self) -> np.ndarray:
        """The probability of each answer, (T, N); 0 where it is not a number."""
        return np.where(np.isfinite(self.highest_TN), self.highest_TN, 0).astype(np.float64)

    @cached_property
    def right(self) -> np.ndarray:
        """Samples of each class that were answered by it, (T, C)."""
        return self.confusion_TCC.diagonal(axis1=1, axis2=2)

    @cached_property
    def f1_of_each(self) -> np.ndarray:
        """F1, (T, C); NaN for one that is neither in a label nor in an answer."""
        in_either_TC = self.confusion_TCC.sum(axis=1) + self.confusion_TCC.sum(axis=2)
        return ratio(2.0 * self.right, in_either_TC)

    @cached_property
    def areas(self) -> np.ndarray:
        """AUROC and average precision, (T, 2): of class 1 of two, or means over the classes."""
        num_classes = len(self.probabilities_CTN)
        classes = [1] if num_classes == 2 else range(num_classes)
        each = [areas(self.probabilities_CTN[one], self.labels_TN == one, self.known_TN) for one in classes]
        return mean_of_defined(np.stack(each), axis=0)


def _highest(probabilities_CTN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the highest probability of each sample, NaN where one is, and the first class that has it.

    A loop over the classes takes a tenth of the time that `max` and `argmax` take along the first axis.
    """
    highest_TN = probabilities_CTN[0]
    answers_TN = np.zeros(highest_TN.shape, dtype=np.int64)
    for one, probabilities_TN in enumerate(probabilities_CTN[1:], 1):
        np.copyto(answers_TN, one, where=probabilities_TN > highest_TN)
        highest_TN = np.maximum(highest_TN, probabilities_TN)
    return highest_TN, answers_TN


def areas(scores_TN: np.ndarray, is_class_TN: np.ndarray, known_TN: np.ndarray) -> np.ndarray:
    """Return the areas under the ROC curves (by trapezoids) and the precision-recall curves (by steps).

    Args:
        scores_TN: float32, from 0 to 1.
        is_class_TN: which samples are positive.
        known_TN: which samples count.

    Returns:
        (T, 2); NaN where all samples that count are positive, or none is.
    """
    # The bits of numbers that are 0 or more, read as integers, are in the order of the numbers. So one sort of integers
    # puts the highest score first and keeps each label beside its score. Those of numbers below 2 leave a bit for it.
    bits_TN = np.ascontiguousarray(scores_TN, dtype=np.float32).view(np.int32)
    keys_TN = np.where(known_TN, (-bits_TN << 1) | is_class_TN, 2)
    keys_TN.sort(axis=1)
    num_tasks, num_samples = keys_TN.shape
    count_T = known_TN.sum(axis=1)
    # Samples with equal scores are on the same side of every threshold.
    is_last_TN = np.ones(keys_TN.shape, dtype=bool)
    score_TN = keys_TN >> 1
    np.not_equal(score_TN[:, 1:], score_TN[:, :-1], out=is_last_TN[:, :-1])
    last_K = np.flatnonzero(is_last_TN)
    num_last_T = is_last_TN.sum(axis=1)
    task_K = np.repeat(np.arange(num_tasks), num_last_T)
    starts = (np.cumsum(num_last_T) - num_last_T)[num_last_T > 0]
    # Counts, as float64: exact, and of the kind that the sums below need.
    above_K = np.minimum(last_K - num_samples * task_K + 1.0, count_T[task_K])
    right_K = np.cumsum(keys_TN & 1, axis=1, dtype=np.float64).ravel()[last_K]
    wrong_K = above_K - right_K
    new_right_K, new_wrong_K = np.empty_like(right_K), np.empty_like(wrong_K)
    for new_K, count_K in ((new_right_K, right_K), (new_wrong_K, wrong_K)):
        np.subtract(count_K[1:], count_K[:-1], out=new_K[1:])
        new_K[starts] = count_K[starts]
    roc_K = new_wrong_K * (right_K - new_right_K / 2)
    precision_K = new_right_K * right_K / np.maximum(above_K, 1)
    positive_T = (is_class_TN & known_TN).sum(axis=1)
    negative_T = count_T - positive_T
    has_both_T = positive_T * negative_T > 0
    auroc_T = ratio(np.bincount(task_K, roc_K, num_tasks), positive_T * negative_T)
    average_precision_T = ratio(np.bincount(task_K, precision_K, num_tasks), np.where(has_both_T, positive_T, 0))
    return np.stack([auroc_T, average_precision_T], axis=1)


def _balanced_accuracy(answers: _Answers) -> np.ndarray:
    return mean_of_defined(ratio(answers.right, answers.confusion_TCC.sum(axis=2)), axis=1)


def _log_loss(answers: _Answers) -> np.ndarray:
    right_TN = np.take_along_axis(answers.probabilities_CTN, answers.labels_TN[None], axis=0)[0]
    losses_TN = -np.log(right_TN.astype(np.float64).clip(min=np.finfo(np.float32).eps))
    return ratio(losses_TN.sum(axis=1, where=answers.known_TN), answers.count_T)


def _calibration_error(answers: _Answers) -> np.ndarray:
    bins_TN = np.minimum(answers.confidence * NUM_BINS, NUM_BINS - 1).astype(np.int64)
    bins_TN += NUM_BINS * np.arange(len(bins_TN))[:, None]
    gaps_TN = ((answers.answers_TN == answers.labels_TN) - answers.confidence) * answers.known_TN
    gaps = np.bincount(bins_TN.ravel(), gaps_TN.ravel(), NUM_BINS * len(bins_TN))
    return ratio(np.abs(gaps).reshape(-1, NUM_BINS).sum(axis=1), answers.count_T)


_METRICS: Mapping[str, Callable[[_Answers], np.ndarray]] = {
    "accuracy": lambda answers: ratio(answers.right.sum(axis=1), answers.count_T),
    "majority_accuracy": lambda answers: ratio(answers.confusion_TCC.sum(axis=2).max(axis=1), answers.count_T),
    "balanced_accuracy": _balanced_accuracy,
    "f1": lambda answers: answers.f1_of_each[:, 1],
    "f1_macro": lambda answers: mean_of_defined(answers.f1_of_each, axis=1),
    "auroc": lambda answers: answers.areas[:, 0],
    "average_precision": lambda answers: answers.areas[:, 1],
    "log_loss": _log_loss,
    "calibration_error": _calibration_error,
}


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Return above / below, NaN where `below` is 0."""
    return np.divide(above, below, out=np.full(np.shape(below), np.nan), where=np.asarray(below) != 0)


def mean_of_defined(values: np.ndarray, axis: int) -> np.ndarray:
    """Return the mean of the values that are not NaN; NaN where all are."""
    defined = ~np.isnan(values)
    return ratio(values.sum(axis=axis, where=defined), defined.sum(axis=axis))
