"""Fit coupled ridge regression to tasks with rows of their own, with an intercept per task (equation 2).

Shapes: N rows, P features, T tasks, L labels: all labels of all tasks in one line.
"""

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from paretrain.theory.arrays import Array


@dataclass(frozen=True)
class CoupledRidge:
    """Hold the fitted weights (P x T) and intercepts (T)."""

    weights_PT: Array
    intercepts_T: Array

    def predict(self, features_NP: Array) -> Array:
        """Return the predictions (N x T)."""
        return features_NP @ self.weights_PT + self.intercepts_T


def fit_coupled(features_NP: Array, labels_NT: Array, inverse_penalty_TT: Array) -> CoupledRidge:
    """Minimise equation 2 with a = 1 for Q⁻¹ = `inverse_penalty_TT`, in the dual: one unknown per label (NaN: none).

    Each task's features and labels are centred on its own labelled rows; the intercepts undo that. With
    w_t = Σ_s Q⁻¹_ts X_sᵀ c_s the solution is (K + diag(n)) c = y, where K_(ti)(sj) = Q⁻¹_ts x_tiᵀ x_sj.
    """
    row_L, task_L = np.nonzero(~np.isnan(labels_NT))
    count_T = np.bincount(task_L, minlength=labels_NT.shape[1])
    label_mean_T = np.nanmean(labels_NT, axis=0)
    labelled_NT = (~np.isnan(labels_NT)).astype(float)
    feature_mean_TP = (labelled_NT.T @ features_NP) / count_T[:, None]
    features_LP = features_NP[row_L] - feature_mean_TP[task_L]
    kernel_LL = (features_LP @ features_LP.T) * inverse_penalty_TT[np.ix_(task_L, task_L)]
    kernel_LL[np.diag_indices_from(kernel_LL)] += count_T[task_L]
    dual_L = cho_solve(cho_factor(kernel_LL), labels_NT[row_L, task_L] - label_mean_T[task_L])
    spread_LT = dual_L[:, None] * inverse_penalty_TT[task_L]
    weights_PT = features_LP.T @ spread_LT
    return CoupledRidge(weights_PT, label_mean_T - np.einsum("tp,pt->t", feature_mean_TP, weights_PT))
