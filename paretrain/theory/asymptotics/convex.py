"""Classification by any convex loss: the limit for labels sign(aᵀξ_t) (equation 11).

Shapes: T tasks.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from paretrain.theory.arrays import Array
from paretrain.theory.asymptotics.losses import Loss
from paretrain.theory.asymptotics.resolvent import NotConvergedError

_NODES, _NODE_WEIGHTS = np.polynomial.hermite_e.hermegauss(101)
_NODE_WEIGHTS = _NODE_WEIGHTS / _NODE_WEIGHTS.sum()
_MAX_ITERATIONS = 2000
_TOLERANCE = 1e-10


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
        updated = [
            _moments(total_T[t], overlap_T[t], squared_norm_T[t], ratio_T[t] * green_TT[t, t], loss)
            for t in range(num_tasks)
        ]
        new_3T = np.array(updated).T
        change = float(np.abs(new_3T - np.array([kappa_T, pull_T, force_T])).max() / np.abs(new_3T).max())
        if change < _TOLERANCE:
            cosine_T = overlap_T / np.sqrt(total_T * squared_norm_T)
            return ConvexLimit(np.arccos(np.clip(cosine_T, -1, 1)) / np.pi, overlap_T, squared_norm_T)
        kappa_T, pull_T, force_T = (new_3T + np.array([kappa_T, pull_T, force_T])) / 2
    raise NotConvergedError(f"the order parameters still move by {change:.1e} after {_MAX_ITERATIONS} iterations")


def _moments(total: float, overlap: float, squared_norm: float, delta: float, loss: Loss) -> tuple[float, float, float]:
    """Return κ, h and F of equation 11 for one task.

    Given u, the label is 1 with probability Φ(E[z|u]/sd), and E[z; y = ±1 | u] is known: one smooth integral over u.
    """
    deviation = np.sqrt(squared_norm)
    u = deviation * _NODES
    mean = overlap / squared_norm * u
    spread = np.sqrt(max(total - overlap**2 / squared_norm, 1e-12 * total))
    density = np.exp(-((mean / spread) ** 2) / 2) / np.sqrt(2 * np.pi)
    kappa = pull = force = 0.0
    for y in (-1.0, 1.0):
        probability = ndtr(y * mean / spread)
        z_part = mean * probability + y * spread * density
        label = np.full_like(u, y)
        nearest = loss.proximal(u, label, delta)
        f = (nearest - u) / delta
        curvature = loss.curvature(nearest, label)
        kappa += float(_NODE_WEIGHTS @ (probability * curvature / (1 + delta * curvature)))
        pull += float(_NODE_WEIGHTS @ (z_part * f))
        force += float(_NODE_WEIGHTS @ (probability * f**2))
    return kappa, (pull + kappa * overlap) / total, force
