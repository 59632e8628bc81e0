"""Rules that change the mean gradient until it opposes no task, or as few as possible: UPGrad and CAGrad.

Shapes: A active tasks, M those of them whose gradient is not zero.
"""

import numpy as np

from paretrain.rules.rule import Stateless, Weights, in_units_of_the_mean


class UPGrad(Stateless):
    """UPGrad (Quinton & Rey 2024, arXiv 2406.16232): the mean of the gradients, each projected to oppose no task."""

    def __call__(self, gram_AA: np.ndarray, losses_A: np.ndarray, tasks_A: np.ndarray) -> Weights:
        """Project every gradient; a zero gradient has weight 0."""
        from paretrain.rules import cone  # scipy takes 0.3 s to import, and only rank 0 needs it

        gram_AA = in_units_of_the_mean(gram_AA)
        lengths_A = np.sqrt(gram_AA.diagonal())
        moving = np.flatnonzero(lengths_A)  # Rounding would give a zero gradient a direction.
        lengths_M = lengths_A[moving]
        cosines_MM = gram_AA[np.ix_(moving, moving)] / np.outer(lengths_M, lengths_M)
        alpha_A = np.zeros(len(lengths_A))
        alpha_A[moving] = lengths_M @ cone.project(cosines_MM) / lengths_M / len(lengths_A)
        return Weights(alpha_A)


class CAGrad(Stateless):
    """CAGrad (Liu et al. 2021, arXiv 2110.14048, Algorithm 1): the best step for the worst task, near the mean.

    Within the ball of radius c |g_0| around the mean gradient g_0 it maximises the smallest g_t · d. The solution is
    d = g_0 + (c |g_0| / |g_w|) g_w, for the g_w = Σ_t w_t g_t on the simplex that minimises g_w · g_0 + c |g_0| |g_w|.
    For ρ = |g_w| / (c |g_0|) this w is that of the min-norm point of the g_t + ρ g_0, so the exact min-norm solver and
    a search for ρ solve the problem. As the authors' code may (rescale = 2), d is divided by 1 + c, so that a learning
    rate carries over from other rules.

    Args:
        c: the radius, as a share of the mean gradient; 0 would be equal weights.

    Raises:
        ValueError: a c that is not between 0 and 1: from 1 on the steps need not converge to a minimum of the mean.
    """

    SMALLEST = 1e-4
    """The smallest ρ, in units of gradients: where 0 is a mean of the gradients, ρ can be 0."""

    def __init__(self, c: float = 0.4) -> None:
        if not 0 < c < 1:
            raise ValueError(f"c must be above 0 and below 1, found {c}")
        self._c = c

    def __call__(self, gram_AA: np.ndarray, losses_A: np.ndarray, tasks_A: np.ndarray) -> Weights:
        """Search for ρ; `certified` is that of the last min-norm point."""
        from scipy.optimize import brentq

        from paretrain import minnorm

        gram_AA = in_units_of_the_mean(gram_AA)
        to_mean_A = gram_AA.mean(axis=1)
        radius = self._c * np.sqrt(max(0.0, to_mean_A.mean()))
        longest = np.sqrt(gram_AA.diagonal().max())
        even_A = np.full(len(gram_AA), 1 / len(gram_AA))
        if radius <= 1e-12 * longest:  # The mean gradient is 0, and the ball is that point.
            return Weights(even_A)

        def nearest(rho: float) -> minnorm.MinNorm:
            added_AA = rho * (to_mean_A[:, None] + to_mean_A) + rho**2 * to_mean_A.mean()
            return minnorm.solve(gram_AA + added_AA)

        def excess(rho: float) -> float:
            w_A = nearest(rho).alpha_T
            return float(np.sqrt(max(0.0, w_A @ gram_AA @ w_A)) - rho * radius)

        rho, largest = self.SMALLEST, 2 * longest / radius
        if excess(rho) > 0:
            rho = float(brentq(excess, rho, largest, xtol=1e-13, rtol=1e-13))
        solution = nearest(rho)
        return Weights((even_A + solution.alpha_T / rho) / (1 + self._c), solution.certified)
