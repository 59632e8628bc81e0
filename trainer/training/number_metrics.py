"""Metrics of regressions, all at once, as scikit-learn and SciPy define them.

Shapes: T tasks, N samples, K runs of equal values.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import numpy as np


def number_metrics(answers_TN: np.ndarray, labels_TN: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the metrics `names`, (T,) each; NaN where one is not defined.

    Args:
        answers_TN: in the unit of `mae` and `rmse`, float64.
        labels_TN: likewise; NaN is no label.
        names: of the metrics.
    """
    pairs = _Pairs(answers_TN, labels_TN)
    finite_T = (np.isfinite(answers_TN) | ~pairs.known_TN).all(axis=1)
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN: not defined.
        return {name: np.where(finite_T, _METRICS[name](pairs), np.nan) for name in names}


class _Pairs:
    """Answers and labels. Both are 0 where there is no label."""

    def __init__(self, answers_TN: np.ndarray, labels_TN: np.ndarray) -> None:
        self.known_TN = ~np.isnan(labels_TN)
        self.answers_TN, self.labels_TN = (np.where(self.known_TN, each, 0.0) for each in (answers_TN, labels_TN))

    def mean(self, values_TN: np.ndarray) -> np.ndarray:
        """Return the mean over the samples with a label."""
        return values_TN.sum(axis=1, where=self.known_TN) / self.known_TN.sum(axis=1)

    def deviations(self, values_TN: np.ndarray) -> np.ndarray:
        """Return the distances from that mean."""
        return values_TN - self.mean(values_TN)[:, None]

    @cached_property
    def squared_error(self) -> np.ndarray:
        """The mean squared error, (T,)."""
        return self.mean(np.square(self.answers_TN - self.labels_TN))


def _r2(pairs: _Pairs) -> np.ndarray:
    variance_T = pairs.mean(np.square(pairs.deviations(pairs.labels_TN)))
    return 1 - pairs.squared_error / np.where(variance_T > 0, variance_T, np.nan)


def _spearman(pairs: _Pairs) -> np.ndarray:
    answers_TN, labels_TN = (
        pairs.deviations(ranks(np.where(pairs.known_TN, values_TN, np.inf)))
        for values_TN in (pairs.answers_TN, pairs.labels_TN)
    )
    variances_T = pairs.mean(np.square(answers_TN)) * pairs.mean(np.square(labels_TN))
    return pairs.mean(answers_TN * labels_TN) / np.sqrt(variances_T)


def ranks(values_TN: np.ndarray) -> np.ndarray:
    """Return the rank of each value in its row, from 0; equal values share the mean of theirs."""
    order_TN = np.argsort(values_TN, axis=1)
    sorted_TN = np.take_along_axis(values_TN, order_TN, axis=1)
    is_first_TN = np.ones(values_TN.shape, dtype=bool)
    is_first_TN[:, 1:] = sorted_TN[:, 1:] != sorted_TN[:, :-1]
    first_K = np.flatnonzero(is_first_TN)
    lengths_K = np.diff(first_K, append=values_TN.size)
    shared_K = first_K % values_TN.shape[1] + (lengths_K - 1) / 2
    ranks_TN = np.empty(values_TN.shape)
    np.put_along_axis(ranks_TN, order_TN, np.repeat(shared_K, lengths_K).reshape(values_TN.shape), axis=1)
    return ranks_TN


_METRICS: Mapping[str, Callable[[_Pairs], np.ndarray]] = {
    "mae": lambda pairs: pairs.mean(np.abs(pairs.answers_TN - pairs.labels_TN)),
    "rmse": lambda pairs: np.sqrt(pairs.squared_error),
    "r2": _r2,
    "spearman": _spearman,
}
