"""Coupled ridge regression: errors and overlaps in the limit (equations 4 to 7).

Shapes: T tasks, J distinct eigenvalues of the features' covariance.
"""

from dataclasses import dataclass

import numpy as np

from paretrain.theory.arrays import Array
from paretrain.theory.asymptotics.population import Population
from paretrain.theory.asymptotics.resolvent import Resolvent, resolvent


@dataclass(frozen=True)
class RidgeLimit:
    """Hold the limits for each task.

    `test_T` is r of equation 5: E(y - xᵀw)² on new samples, noise included; `train_T` the same on the training rows;
    `overlap_T` is Cov(xᵀβ, xᵀw) and `squared_norm_T` E(xᵀw)² (equation 7).
    """

    test_T: Array
    train_T: Array
    overlap_T: Array
    squared_norm_T: Array
    kappa_T: Array
    green_JTT: Array


def ridge_limit(
    penalty_TT: Array, population: Population, ratio_T: Array, weights_T: Array | None = None
) -> RidgeLimit:
    """Return the limits of coupled ridge regression with penalty Q, ratios γ = p/n and task weights a (1 if None)."""
    ratio_T = np.asarray(ratio_T, dtype=float)
    weights_T = np.ones_like(ratio_T) if weights_T is None else np.asarray(weights_T, dtype=float)
    solved = resolvent(penalty_TT, ratio_T, weights_T, population.values_J, population.shares_J)
    return limits_at(solved, penalty_TT, population, ratio_T, weights_T)


def limits_at(
    solved: Resolvent, penalty_TT: Array, population: Population, ratio_T: Array, weights_T: Array
) -> RidgeLimit:
    """Return the limits where equation 4 is solved already; they are linear in the population's Γ and σ²."""
    values_J, gram_JTT, green_JTT = population.values_J, population.gram_JTT, solved.green_JTT
    bias_JTT = green_JTT @ penalty_TT
    fit_JTT = values_J[:, None, None] * green_JTT * solved.kappa_T  # s_j G_j K; both add up to the identity
    bias_T = np.einsum("j,jts,jsr,jtr->t", values_J, bias_JTT, gram_JTT, bias_JTT, optimize=True)
    echo_TT = solved.spread_TT * (ratio_T * solved.kappa_T**2)  # S C
    test_T = np.linalg.solve(np.eye(len(ratio_T)) - echo_TT, bias_T + population.noise_T)
    signal_T = np.einsum("j,jts,jsr,jtr->t", values_J, fit_JTT, gram_JTT, fit_JTT, optimize=True)
    return RidgeLimit(
        test_T=test_T,
        train_T=(solved.kappa_T / weights_T) ** 2 * test_T,
        overlap_T=np.einsum("j,jts,jst->t", values_J, fit_JTT, gram_JTT),
        squared_norm_T=signal_T + echo_TT @ test_T,
        kappa_T=solved.kappa_T,
        green_JTT=green_JTT,
    )


def classification_errors(limit: RidgeLimit, total_T: Array) -> Array:
    """Return the share of wrong signs where the labels are sign(aᵀξ_t), |ξ_t|² = total_T (equation 7)."""
    slope_T = np.sqrt(2 / (np.pi * total_T))
    cosine_T = limit.overlap_T / (slope_T * np.sqrt(total_T * limit.squared_norm_T))
    error_T: Array = np.arccos(np.clip(cosine_T, -1, 1)) / np.pi
    return error_T
