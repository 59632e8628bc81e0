"""Fit coupled ridge regression with an intercept per task for a given Q (equation 2), and predict its test errors.

The errors are those of equation 17.

Shapes: N rows, P features, T tasks, L labels: all labels of all tasks in one line.
"""

from dataclasses import dataclass

import numpy as np

from paretrain.theory.arrays import Array


@dataclass(frozen=True)
class CoupledRidge:
    """Hold the fitted weights (P x T) and intercepts (T), and each task's generalised cross-validation error.

    By equation 6 the test error is the training error divided by (κ_t/a_t)², and κ_t/a_t = 1 - df_t/n_t, with df_t the
    trace of task t's block of the matrix that takes labels to predictions, for any effects and covariance.
    """

    weights_PT: Array
    intercepts_T: Array
    validated_T: Array

    def predict(self, features_NP: Array) -> Array:
        """Return the predictions (N x T)."""
        predictions_NT: Array = features_NP @ self.weights_PT + self.intercepts_T
        return predictions_NT


def fit_in_dual(features_NP: Array, labels_NT: Array, inverse_penalty_TT: Array) -> CoupledRidge:
    """Minimise equation 2 with a = 1 for Q⁻¹ = `inverse_penalty_TT`, in the dual: one unknown per label (NaN: none).

    Each task's features and labels are centred on its own labelled rows; the intercepts undo that. With
    w_t = Σ_s Q⁻¹_ts X_sᵀ c_s the solution is (K + diag(n)) c = y, where K_(ti)(sj) = Q⁻¹_ts x_tiᵀ x_sj.
    """
    row_L, task_L = np.nonzero(~np.isnan(labels_NT))
    count_T = np.bincount(task_L, minlength=labels_NT.shape[1])
    count_L = count_T[task_L]
    label_mean_T = np.nanmean(labels_NT, axis=0)
    feature_mean_TP = ((~np.isnan(labels_NT)).astype(float).T @ features_NP) / count_T[:, None]
    features_LP = features_NP[row_L] - feature_mean_TP[task_L]
    kernel_LL = (features_LP @ features_LP.T) * inverse_penalty_TT[np.ix_(task_L, task_L)]
    kernel_LL[np.diag_indices_from(kernel_LL)] += count_L
    inverse_LL = np.linalg.inv(kernel_LL)
    dual_L = inverse_LL @ (labels_NT[row_L, task_L] - label_mean_T[task_L])
    weights_PT = features_LP.T @ (dual_L[:, None] * inverse_penalty_TT[task_L])
    # Labels minus predictions are n c; the mean that each task has removed takes 1/n of each label more.
    kept_L = count_L * np.diag(inverse_LL) - 1 / count_L
    kappa_T = np.bincount(task_L, weights=kept_L) / count_T
    train_T = np.bincount(task_L, weights=(count_L * dual_L) ** 2) / count_T
    intercepts_T = label_mean_T - np.einsum("tp,pt->t", feature_mean_TP, weights_PT)
    return CoupledRidge(weights_PT, intercepts_T, train_T / kappa_T**2)
