"""Estimate the tasks' similarity and noise from their labels, without bias (equations 15 and 16).

Shapes: N rows, P features, T tasks.
"""

from dataclasses import dataclass

import numpy as np

from paretrain.theory.arrays import Array


@dataclass(frozen=True)
class Moments:
    """Hold estimates of the effects' covariance Γ/p (`effects_TT`) and of the noise's covariance Ω (`noise_TT`).

    Both are unbiased and so need not be positive semi-definite. The noise's covariance is NaN for tasks that share less
    than two rows.
    """

    effects_TT: Array
    noise_TT: Array


def estimate_moments(features_NP: Array, labels_NT: Array) -> Moments:
    """Regress the products of labels on the kernel of the features and on the identity of rows.

    Labels may be missing (NaN): tasks may have rows of their own, share all rows, or anything between. A mean per task
    is removed and accounted for. Products of a row with itself tell the noise's covariance from the effects'.
    """
    kernel_NN = features_NP @ features_NP.T
    num_tasks = labels_NT.shape[1]
    effects_TT, noise_TT = (np.full((num_tasks, num_tasks), np.nan) for _ in range(2))
    rows = [np.flatnonzero(~np.isnan(labels_NT[:, t])) for t in range(num_tasks)]
    centred = [labels_NT[rows[t], t] - labels_NT[rows[t], t].mean() for t in range(num_tasks)]
    for t in range(num_tasks):
        for s in range(t + 1):
            kernel = _centre(kernel_NN[np.ix_(rows[t], rows[s])])
            effects = [(float(centred[t] @ kernel @ centred[s]), kernel)]
            same_row = rows[t][:, None] == rows[s]
            if same_row.sum() > 1:
                same = _centre(same_row.astype(float))
                effects.append((float(centred[t] @ same @ centred[s]), same))
            products = np.array([[float((a * b).sum()) for _, b in effects] for _, a in effects])
            estimate = np.linalg.solve(products, [product for product, _ in effects])
            effects_TT[t, s] = effects_TT[s, t] = estimate[0]
            if len(estimate) == 2:
                noise_TT[t, s] = noise_TT[s, t] = estimate[1]
    return Moments(effects_TT, noise_TT)


def _centre(matrix: Array) -> Array:
    """Remove the means of rows and columns: what removing each task's mean does to the covariance of its labels."""
    centred: Array = matrix - matrix.mean(axis=0) - matrix.mean(axis=1, keepdims=True) + matrix.mean()
    return centred
