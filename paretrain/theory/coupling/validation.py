"""Predict the test errors of a coupled fit from its training rows alone (equation 17).

Shapes: N rows, P features, T tasks, L labels: all labels of all tasks in one line.
"""

import numpy as np

from paretrain.theory.arrays import Array


def cross_validated_errors(features_NP: Array, labels_NT: Array, inverse_penalty_TT: Array) -> Array:
    """Return the generalised cross-validation error of each task for the fit that `fit_coupled` makes.

    By equation 6 the test error is the training error divided by (κ_t/a_t)², and κ_t/a_t = 1 - df_t/n_t, with df_t the
    trace of task t's block of the matrix that takes labels to predictions. This holds for any effects and covariance.
    """
    row_L, task_L = np.nonzero(~np.isnan(labels_NT))
    count_T = np.bincount(task_L, minlength=labels_NT.shape[1])
    labelled_NT = (~np.isnan(labels_NT)).astype(float)
    feature_mean_TP = (labelled_NT.T @ features_NP) / count_T[:, None]
    features_LP = features_NP[row_L] - feature_mean_TP[task_L]
    kernel_LL = (features_LP @ features_LP.T) * inverse_penalty_TT[np.ix_(task_L, task_L)]
    kernel_LL[np.diag_indices_from(kernel_LL)] += count_T[task_L]
    inverse_LL = np.linalg.inv(kernel_LL)
    # Labels minus predictions are n (K + n)⁻¹ y; the mean that each task has removed takes 1/n of each label more.
    residual_L = count_T[task_L] * (inverse_LL @ (labels_NT - np.nanmean(labels_NT, axis=0))[row_L, task_L])
    kept_L = count_T[task_L] * np.diag(inverse_LL) - 1 / count_T[task_L]
    kappa_T = np.bincount(task_L, weights=kept_L) / count_T
    errors_T: Array = np.bincount(task_L, weights=residual_L**2) / count_T / kappa_T**2
    return errors_T
