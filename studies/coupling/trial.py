"""One trial: give every task its own few rows, predict what coupling wins, fit, and measure.

Shapes: N rows, P features, T tasks.
"""

from dataclasses import dataclass

import numpy as np

from paretrain.theory.coupling import estimate_moments, fit_in_dual, learning_curve, penalty_grid
from studies.coupling.tables import Table

GRID = penalty_grid(0.1, 1e4, per_decade=1)
MAX_LABELS = 400


@dataclass(frozen=True)
class Outcome:
    """Hold the test errors (mean over tasks; 1: predicting the mean), and predictions from the training rows alone.

    `predicted_*` come from the theory with estimated moments (equations 5 and 15), `validated_*` from generalised
    cross-validation (17).
    """

    alone: float
    alone_each: float
    combined: float
    predicted_alone: float
    predicted_gain: float
    validated_alone: float
    validated_gain: float
    similarity: float


def rows_of_a_task(table: Table) -> int:
    """Return how many rows each task gets to train on: an eighth of the table, 12 to 120, and MAX_LABELS in all."""
    most = min(120, MAX_LABELS // table.labels_NT.shape[1])
    return int(np.clip(len(table.labels_NT) // 8, 12, most))


def trial(table: Table, generator: np.random.Generator) -> np.ndarray:
    """Return an Outcome as an array.

    40 % of the rows are for testing. Of the others each task draws its own for training and as many for choosing the
    penalties; two tasks may draw the same row. Theory sees the features of all these
    rows and the labels for training. Penalties are chosen on the validation rows from one grid: λ
    and μ (combined), μ (alone), or one μ for each task (alone_each).
    """
    size, num_rows, num_tasks = rows_of_a_task(table), *table.labels_NT.shape
    order_N = generator.permutation(num_rows)
    test, pool = order_N[: int(0.4 * num_rows)], order_N[int(0.4 * num_rows) :]
    train_NT, validation_NT = (np.full(table.labels_NT.shape, np.nan) for _ in range(2))
    for task in range(num_tasks):
        drawn = generator.permutation(pool)[: 2 * size]
        train_NT[drawn[:size], task] = table.labels_NT[drawn[:size], task]
        validation_NT[drawn[size:], task] = table.labels_NT[drawn[size:], task]
    features_NP = _scaled_by(table.features_NP, pool)
    expected = learning_curve(features_NP[pool], train_NT[pool], [1], grid=GRID)[0]

    used_N = ~np.isnan(train_NT).all(axis=1)
    used_NP, used_NT = features_NP[used_N], train_NT[used_N]
    validation_LT, test_LT, generalised_LT = [], [], []
    for common, own in zip(GRID.common_L, GRID.own_L, strict=True):
        inverse_TT = 1 / common + np.eye(num_tasks) / own
        fitted = fit_in_dual(used_NP, used_NT, inverse_TT)
        generalised_LT.append(fitted.validated_T)
        predicted_NT = fitted.predict(features_NP)
        validation_LT.append(np.nanmean((predicted_NT - validation_NT) ** 2, axis=0))
        test_LT.append(((predicted_NT - table.labels_NT)[test] ** 2).mean(axis=0))
    validation, tested = np.array(validation_LT), np.array(test_LT)
    without = np.isinf(GRID.common_L)
    each_T = np.argmin(np.where(without[:, None], validation, np.inf), axis=0)
    generalised_L = np.mean(generalised_LT, axis=1)
    validated_alone = np.where(without, generalised_L, np.inf).min()
    outcome = Outcome(
        alone=tested[np.argmin(np.where(without, validation.mean(axis=1), np.inf))].mean(),
        alone_each=tested[each_T, np.arange(num_tasks)].mean(),
        combined=tested[np.argmin(validation.mean(axis=1))].mean(),
        predicted_alone=expected.alone,
        predicted_gain=1 - expected.combined / expected.alone,
        validated_alone=validated_alone,
        validated_gain=1 - generalised_L.min() / validated_alone,
        similarity=_mean_similarity(estimate_moments(used_NP, used_NT).effects_TT),
    )
    return np.array(list(vars(outcome).values()), dtype=float)


def _scaled_by(features_NP: np.ndarray, rows_N: np.ndarray) -> np.ndarray:
    """Return the features with mean 0 and variance 1 on the rows; what is constant there is left out."""
    mean_P, deviation_P = features_NP[rows_N].mean(axis=0), features_NP[rows_N].std(axis=0)
    varies_P = deviation_P > 1e-9 * (1 + np.abs(mean_P))
    return (features_NP - mean_P)[:, varies_P] / deviation_P[varies_P]


def _mean_similarity(effects_TT: np.ndarray) -> float:
    """Return the mean correlation between the effects of the tasks that seem to have some; NaN for less than two."""
    some_T = np.diag(effects_TT) > 0
    if some_T.sum() < 2:
        return float("nan")
    effects_TT = effects_TT[np.ix_(some_T, some_T)]
    deviation_T = np.sqrt(np.diag(effects_TT))
    correlations_TT = np.clip(effects_TT / np.outer(deviation_T, deviation_T), -1, 1)
    return float(correlations_TT[~np.eye(len(deviation_T), dtype=bool)].mean())
