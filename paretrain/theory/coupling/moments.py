"""Estimate the tasks' similarity and noise from their labels (equations 15 and 16).

Shapes: N rows, P features, T tasks; M = n_t - 1 contrasts of the rows of a task, which know nothing of its mean.
"""

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cholesky, helmert, solve_triangular
from scipy.optimize import minimize_scalar

from paretrain.theory.arrays import Array


@dataclass(frozen=True)
class Moments:
    """Hold estimates of the effects' covariance Γ/p (`effects_TT`) and of the noise's covariance Ω (`noise_TT`).

    They need not be positive semi-definite. The noise's covariance is NaN for tasks that share less than two rows.
    """

    effects_TT: Array
    noise_TT: Array


def estimate_moments(features_NP: Array, labels_NT: Array, noise_ratios_T: Array | None = None) -> Moments:
    """Regress the products of labels on the kernel of the features and on the identity of rows.

    Labels may be missing (NaN): tasks may have their own rows, share all, or anything between. Products of a row with
    itself tell the noise's covariance from the effects'. `noise_ratios_T` (σ²/(Γ_tt/p)) weighs the products; for given
    ratios the estimates have no bias. By default they are the likeliest of each task (restricted maximum likelihood).
    """
    kernel_NN = features_NP @ features_NP.T
    num_tasks = labels_NT.shape[1]
    rows = [np.flatnonzero(~np.isnan(labels_NT[:, t])) for t in range(num_tasks)]
    contrasts = [helmert(len(row)) for row in rows]
    whiteners = []
    for t, (row, contrast) in enumerate(zip(rows, contrasts, strict=True)):
        kernel_MM = contrast @ kernel_NN[np.ix_(row, row)] @ contrast.T
        ratio = (
            likeliest_noise_ratio(kernel_MM, contrast @ labels_NT[row, t])
            if noise_ratios_T is None
            else noise_ratios_T[t]
        )
        root_MM = cholesky(kernel_MM + ratio * np.eye(len(kernel_MM)), lower=True)
        whiteners.append(solve_triangular(root_MM, contrast, lower=True))
    whitened = [whitener @ labels_NT[row, t] for t, (row, whitener) in enumerate(zip(rows, whiteners, strict=True))]
    effects_TT, noise_TT = (np.full((num_tasks, num_tasks), np.nan) for _ in range(2))
    for t in range(num_tasks):
        for s in range(t + 1):
            same_row = (rows[t][:, None] == rows[s]).astype(float)
            causes = [kernel_NN[np.ix_(rows[t], rows[s])]] + ([same_row] if same_row.sum() > 1 else [])
            causes = [whiteners[t] @ cause @ whiteners[s].T for cause in causes]
            products = np.array([[float((a * b).sum()) for b in causes] for a in causes])
            estimate = np.linalg.solve(products, [float(whitened[t] @ cause @ whitened[s]) for cause in causes])
            effects_TT[t, s] = effects_TT[s, t] = estimate[0]
            if len(causes) == 2:
                noise_TT[t, s] = noise_TT[s, t] = estimate[1]
    return Moments(effects_TT, noise_TT)


def likeliest_noise_ratio(kernel_MM: Array, labels_M: Array) -> float:
    """Return the ratio δ that maximises the likelihood of labels with a covariance proportional to K + δ I."""
    values_M, vectors_MM = np.linalg.eigh(kernel_MM)
    squares_M = (vectors_MM.T @ labels_M) ** 2
    scale = float(values_M.mean())

    def negative_likelihood(log_ratio: float) -> float:
        variance_M = np.maximum(values_M, 0) + scale * np.exp(log_ratio)
        return float(np.log(variance_M).sum() + len(variance_M) * np.log((squares_M / variance_M).sum()))

    grid = np.linspace(np.log(1e-4), np.log(1e3), 33)
    start = int(np.argmin([negative_likelihood(point) for point in grid]))
    bounds = grid[max(start - 1, 0)], grid[min(start + 1, len(grid) - 1)]
    return scale * float(np.exp(minimize_scalar(negative_likelihood, bounds=bounds, method="bounded").x))
