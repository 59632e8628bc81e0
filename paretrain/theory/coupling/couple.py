"""Advise whether to combine tasks, and how strongly, before any model is trained.

Shapes: N rows, P features, T tasks, L penalties, G groups of rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from paretrain.theory.arrays import Array
from paretrain.theory.coupling.grid import PenaltyGrid, penalty_grid
from paretrain.theory.coupling.moments import Moments, estimate_moments
from paretrain.theory.coupling.prediction import OwnRows, SharedRows, predict_own_rows, predict_shared_rows

NUM_GROUPS = 12
"""Groups of rows that the jackknife leaves out in turn."""

MIN_LABELS = 6
"""Labels that a task needs at least."""

Design = Literal["own rows", "shared rows", "some rows shared"]


@dataclass(frozen=True)
class Estimate:
    """Hold a number and its standard error."""

    value: float
    error: float


@dataclass(frozen=True)
class Advice:
    """Hold what `couple` found. Errors are relative to each task's variance: 1 is what predicting the mean gives.

    `design` says which theory was used: equation 13 for "shared rows", equation 5 otherwise, as an approximation where
    some rows are shared. `similarity_TT` holds the correlations between the tasks' effects, `similarity_error_TT` their
    standard errors; NaN where a task's own signal is not above zero. `ratio_T` is p/n, `noise_T` the noise's share of
    the variance. `common` (λ; inf: keep apart) and `own` (μ) are the best of a grid for features and labels with unit
    variance, `own_alone` is the best without coupling. `gain` is the predicted decrease of the mean error.
    """

    design: Design
    similarity_TT: Array
    similarity_error_TT: Array
    noise_T: Array
    ratio_T: Array
    alone_T: Array
    combined_T: Array
    common: float
    own: float
    own_alone: float
    gain: Estimate


@dataclass(frozen=True)
class MeanErrors:
    """Hold the predicted mean test errors, each with its best penalty."""

    alone: float
    combined: float


def couple(
    features_NP: Array, labels_NT: Array, *, grid: PenaltyGrid | None = None, factor: float = 1.0, seed: int = 0
) -> Advice:
    """Estimate similarity and noise of the tasks and predict what coupling wins.

    Labels may be missing (NaN); rows without any label serve the features' covariance. Standard errors come from a
    jackknife over groups of rows. `factor`: predict for so many times these labels, where they are part of a table.

    Raises:
        ValueError: fewer than two tasks, features that are not finite, or a task with too few labels or only one value.
    """
    grid = penalty_grid() if grid is None else grid
    features_NP, labels_NT = _prepared(features_NP, labels_NT)
    predict = _predictor(features_NP, labels_NT, grid, factor)
    moments = estimate_moments(features_NP, labels_NT)
    errors_LT, alone, combined = _best(predict, grid, moments)
    gains, similarities = [], []
    for kept_N in _leave_groups_out(labels_NT, seed):
        without = estimate_moments(features_NP, np.where(kept_N[:, None], labels_NT, np.nan))
        gains.append(_gain(*_best(predict, grid, without)))
        similarities.append(_correlations(without.effects_TT))
    return Advice(
        design=design_of(labels_NT),
        similarity_TT=_correlations(moments.effects_TT),
        similarity_error_TT=_jackknife_error(np.array(similarities)),
        noise_T=np.diag(moments.noise_TT),
        ratio_T=features_NP.shape[1] / (factor * _sizes(labels_NT)),
        alone_T=errors_LT[alone],
        combined_T=errors_LT[combined],
        common=float(grid.common_L[combined]),
        own=float(grid.own_L[combined]),
        own_alone=float(grid.own_L[alone]),
        gain=Estimate(_gain(errors_LT, alone, combined), float(_jackknife_error(np.array(gains)))),
    )


def learning_curve(
    features_NP: Array, labels_NT: Array, factors: Sequence[float], *, grid: PenaltyGrid | None = None
) -> list[MeanErrors]:
    """Predict the mean errors if every task had so many times its labels: what more labels would win."""
    grid = penalty_grid() if grid is None else grid
    features_NP, labels_NT = _prepared(features_NP, labels_NT)
    moments = estimate_moments(features_NP, labels_NT)
    curve = []
    for factor in factors:
        errors_LT, alone, combined = _best(_predictor(features_NP, labels_NT, grid, factor), grid, moments)
        curve.append(MeanErrors(float(errors_LT[alone].mean()), float(errors_LT[combined].mean())))
    return curve


def design_of(labels_NT: Array) -> Design:
    """Return whether the tasks have labels on their own rows, on the same, or on some of the same."""
    count_N = (~np.isnan(labels_NT)).sum(axis=1)
    if count_N.max() <= 1:
        return "own rows"
    return "shared rows" if set(count_N) <= {0, labels_NT.shape[1]} else "some rows shared"


def standardised(table_NC: Array) -> Array:
    """Return the columns with mean 0 and variance 1 over what is not missing; constant columns become 0."""
    centred_NC = table_NC - np.nanmean(table_NC, axis=0)
    deviation_C = np.nanstd(table_NC, axis=0)
    standardised_NC: Array = centred_NC / np.where(deviation_C > 0, deviation_C, 1)
    return standardised_NC


def _prepared(features_NP: Array, labels_NT: Array) -> tuple[Array, Array]:
    if labels_NT.ndim != 2 or labels_NT.shape[1] < 2:
        raise ValueError(f"labels have the shape {labels_NT.shape}; expected (rows, tasks) with two tasks or more")
    if len(features_NP) != len(labels_NT):
        raise ValueError(f"{len(features_NP)} rows of features, {len(labels_NT)} of labels; expected as many")
    if not np.isfinite(features_NP).all():
        raise ValueError("some features are NaN or infinite; expected numbers: fill them or leave them out")
    if np.isinf(labels_NT).any():
        raise ValueError("some labels are infinite; expected numbers, or NaN where a label is missing")
    sizes_T = _sizes(labels_NT)
    if sizes_T.min() < MIN_LABELS:
        task = int(sizes_T.argmin())
        raise ValueError(f"task {task} has {sizes_T[task]:.0f} labels; expected at least {MIN_LABELS} for each task")
    if (constant_T := np.nanmin(labels_NT, axis=0) == np.nanmax(labels_NT, axis=0)).any():
        raise ValueError(f"all labels of task {int(constant_T.argmax())} are the same; leave it out")
    return standardised(features_NP), standardised(labels_NT)


def _predictor(features_NP: Array, labels_NT: Array, grid: PenaltyGrid, factor: float = 1.0) -> OwnRows | SharedRows:
    spectrum_P = np.zeros(features_NP.shape[1])
    values = np.linalg.svd(features_NP, compute_uv=False) ** 2 / len(features_NP)
    spectrum_P[: len(values)] = values
    penalties, sizes_T = grid.matrices(labels_NT.shape[1]), factor * _sizes(labels_NT)
    if design_of(labels_NT) == "shared rows":
        return predict_shared_rows(penalties, spectrum_P, float(sizes_T[0]))
    return predict_own_rows(penalties, spectrum_P, sizes_T)


def _sizes(labels_NT: Array) -> Array:
    sizes_T: Array = (~np.isnan(labels_NT)).sum(axis=0).astype(float)
    return sizes_T


def _best(predict: OwnRows | SharedRows, grid: PenaltyGrid, moments: Moments) -> tuple[Array, int, int]:
    """Return the predicted errors and the positions of the best penalty without and with coupling."""
    errors_LT = predict.errors(moments)
    mean_L = errors_LT.mean(axis=1)
    alone = int(np.argmin(np.where(np.isinf(grid.common_L), mean_L, np.inf)))
    return errors_LT, alone, int(np.argmin(mean_L))


def _gain(errors_LT: Array, alone: int, combined: int) -> float:
    return float(1 - errors_LT[combined].mean() / errors_LT[alone].mean())


def _correlations(effects_TT: Array) -> Array:
    own_T = np.diag(effects_TT)
    deviation_T = np.sqrt(np.where(own_T > 0, own_T, np.nan))
    correlation_TT: Array = np.clip(effects_TT / np.outer(deviation_T, deviation_T), -1, 1)
    return correlation_TT


def _leave_groups_out(labels_NT: Array, seed: int) -> list[Array]:
    """Return masks of rows, each without one of NUM_GROUPS random groups with an equal part of each task's rows."""
    generator = np.random.default_rng(seed)
    group_N = np.full(len(labels_NT), -1)
    for labels_N in labels_NT.T:
        fresh = generator.permutation(np.flatnonzero(~np.isnan(labels_N) & (group_N < 0)))
        group_N[fresh] = (np.arange(len(fresh)) + generator.integers(NUM_GROUPS)) % NUM_GROUPS
    return [group_N != group for group in range(NUM_GROUPS)]


def _jackknife_error(values_G: Array) -> Array:
    spread = values_G - values_G.mean(axis=0)
    error: Array = np.sqrt((len(values_G) - 1) / len(values_G) * (spread**2).sum(axis=0))
    return error
