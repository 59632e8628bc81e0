"""Classification by any convex loss: the limit for labels sign(aᵀξ_t) (equation 11).

Shapes: T tasks, M nodes of Gauss-Hermite quadrature.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from paretrain.theory.arrays import Array
from paretrain.theory.asymptotics.losses import Loss
from paretrain.theory.asymptotics.resolvent import NotConvergedError

_NODES_M, _NODE_WEIGHTS_M = np.polynomial.hermite_e.hermegauss(101)
_NODE_WEIGHTS_M = _NODE_WEIGHTS_M / _NODE_WEIGHTS_M.sum()
_MAX_ITERATIONS = 2000
_TOLERANCE = 1e-8


@dataclass(frozen=True)
class ConvexLimit:
    """Hold the share of wrong signs, ⟨b_t, w_t⟩ and |w_t|² of each task."""

    error_T: Array
    overlap_T: Array
    squared_norm_T: Array


def convex_limit(penalty_TT: Array, seen_TT: Array, total_T: Array, ratio_T: Array, loss: Loss) -> ConvexLimit:
    """Return the limit of min Σ_t 1/n_t Σ_i ℓ(y_ti, x_tiᵀw_t) + 1/2 Σ_ts Q_ts ⟨w_t, w_s⟩ over white features.

    `seen_TT` holds ⟨b_t, b_s⟩, `total_T` |ξ_t|², `ratio_T` p/n. The fixed point is found by damped iteration.
    """
    num_tasks = len(ratio_T)
    kappa_T, pull_T, force_T = (np.full(num_tasks, 0.2) for _ in range(3))
    for _ in range(_MAX_ITERATIONS):
        green_TT = np.linalg.inv(np.diag(kappa_T) + penalty_TT)
        fit_TT = green_TT * pull_T
        overlap_T = np.einsum("ts,st->t", fit_TT, seen_TT)
        squared_norm_T = np.einsum("ts,sr,tr->t", fit_TT, seen_TT, fit_TT) + green_TT**2 @ (ratio_T * force_T)
        new_3T = _moments(total_T, overlap_T, squared_norm_T, ratio_T * np.diag(green_TT), loss)
        change = float(np.abs(new_3T - np.array([kappa_T, pull_T, force_T])).max() / np.abs(new_3T).max())
        if change < _TOLERANCE:
            cosine_T = overlap_T / np.sqrt(total_T * squared_norm_T)
            return ConvexLimit(np.arccos(np.clip(cosine_T, -1, 1)) / np.pi, overlap_T, squared_norm_T)
        kappa_T, pull_T, force_T = (new_3T + np.array([kappa_T, pull_T, force_T])) / 2
    raise NotConvergedError(f"the order parameters still move by {change:.1e} after {_MAX_ITERATIONS} iterations")


def _moments(total_T: Array, overlap_T: Array, squared_norm_T: Array, delta_T: Array, loss: Loss) -> Array:
    """Return κ, h and F of equation 11 (3 x T).

    Given u, the label is 1 with probability Φ(E[z|u]/sd), and E[z; y = 1 | u] is known: one smooth integral over u. The
    label -1 contributes as much as the label 1, as (z, u) has the law of (-z, -u).
    """
    u_TM = np.sqrt(squared_norm_T)[:, None] * _NODES_M
    mean_TM = (overlap_T / squared_norm_T)[:, None] * u_TM
    spread_T1 = np.sqrt(np.maximum(total_T - overlap_T**2 / squared_norm_T, 1e-12 * total_T))[:, None]
    probability_TM = ndtr(mean_TM / spread_T1)
    density_TM = np.exp(-((mean_TM / spread_T1) ** 2) / 2) / np.sqrt(2 * np.pi)
    label_TM = np.ones_like(u_TM)
    nearest_TM = loss.proximal(u_TM, label_TM, delta_T[:, None])
    f_TM = (nearest_TM - u_TM) / delta_T[:, None]
    curvature_TM = loss.curvature(nearest_TM, label_TM)
    kappa_T = 2 * (probability_TM * curvature_TM / (1 + delta_T[:, None] * curvature_TM)) @ _NODE_WEIGHTS_M
    pull_T = 2 * ((mean_TM * probability_TM + spread_T1 * density_TM) * f_TM) @ _NODE_WEIGHTS_M
    force_T = 2 * (probability_TM * f_TM**2) @ _NODE_WEIGHTS_M
    return np.array([kappa_T, (pull_T + kappa_T * overlap_T) / total_T, force_T])
