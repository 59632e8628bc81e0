"""Fit a linear head by logistic regression with a ridge penalty, for each of several penalties.

Shapes: N rows, D features, C classes, R penalties.
"""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp

from paretrain.theory.arrays import Array


def fit_logistic(
    features_ND: Array, class_N: Array, num_classes: int, ridges_R: Sequence[float], start: tuple[Array, Array] | None
) -> list[tuple[Array, Array]]:
    """Minimise mean cross-entropy + ridge/2 |W|² by L-BFGS for each penalty; each solution starts the next.

    Args:
        features_ND: as the head is given them.
        class_N: 0 to C - 1.
        num_classes: C.
        ridges_R: the penalties, all positive; intercepts are free.
        start: weights (C x D) and intercepts (C) to begin with; None: zeros. They save time and change nothing else.

    Returns:
        The weights (C x D) and intercepts (C) of each penalty.
    """
    center_D = features_ND.mean(axis=0)
    moved_ND, rows_N = features_ND - center_D, np.arange(len(class_N))
    width = len(center_D)

    def objective(flat: Array, ridge: float) -> tuple[float, Array]:
        weight_CD, bias_C = flat[: num_classes * width].reshape(num_classes, width), flat[num_classes * width :]
        logits_NC = moved_ND @ weight_CD.T + bias_C
        logits_NC -= logsumexp(logits_NC, axis=1, keepdims=True)
        loss = -float(logits_NC[rows_N, class_N].mean()) + ridge / 2 * float((weight_CD**2).sum())
        slope_NC = np.exp(logits_NC)
        slope_NC[rows_N, class_N] -= 1
        slope_NC /= len(class_N)
        return loss, np.concatenate([(slope_NC.T @ moved_ND + ridge * weight_CD).ravel(), slope_NC.sum(axis=0)])

    weight_CD, bias_C = start or (np.zeros((num_classes, width)), np.zeros(num_classes))
    flat = np.concatenate([weight_CD.ravel(), bias_C + weight_CD @ center_D])
    fitted = []
    for ridge in ridges_R:
        options = {"maxiter": 300, "ftol": 1e-11, "gtol": 1e-7}
        flat = minimize(objective, flat, args=(ridge,), jac=True, method="L-BFGS-B", options=options).x
        weight_CD, moved_bias_C = flat[: num_classes * width].reshape(num_classes, width), flat[num_classes * width :]
        fitted.append((weight_CD, moved_bias_C - weight_CD @ center_D))
    return fitted
