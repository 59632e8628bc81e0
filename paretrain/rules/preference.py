"""Choose a point of the Pareto front: the one where the losses have given ratios.

Shapes: T tasks, A active tasks (A <= T).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from paretrain.rules.gradients import MinNormWeighting
from paretrain.rules.rule import Weights, refuse_negative, share


class Chebyshev:
    """Steer towards the weighted Chebyshev point  min max_t p_t L_t : where all p_t L_t of the front are equal.

    A preference p of {left: 2, right: 1} asks for a loss of `left` half as large as that of `right`. Every point of a
    convex or concave front is the Chebyshev point of some p; a weighted sum of losses reaches only convex parts.
    A task that conflicts with no other may end with a smaller p_t L_t than the rest.

    The idea is that of WC-MGDA (Momma, Dong & Liu 2022, ICML): minimise ‖Σ α_t p_t g_t‖² minus a multiple of
    Σ α_t p_t L_t over the simplex. Here the second term becomes one more coordinate of each gradient, so the exact,
    certified min-norm solver applies unchanged:

        h_t = (p_t g_t,  κ (2 - q_t)),    q_t = p_t L_t / max_s p_s L_s,    κ² = strength · Σ_t p_t² M_tt / A²

    κ is the length of the mean gradient if the gradients were orthogonal. With α the min-norm point of the h_t and
    q̄ = Σ α_t q_t, the direction u = Σ α_t p_t g_t satisfies, for each task,

        <p_t g_t, u>  >=  ‖u‖² + κ² (2 - q̄) (q_t - q̄) :

    so every task that is worse than the mean descends in the space of z, and the worst one always does. u = 0 only if
    every task of the support has q_t = 1, which is the Chebyshev point, for any strength.

    The returned weights are α_t p_t, rescaled to sum 1.

    Args:
        preference_T: the relative importance p of each task, in task order; any positive numbers.
        strength: how strongly the losses pull, against descent in all tasks. Below 0.5 convergence is slow, above 5
            the losses oscillate around the point.

    Raises:
        ValueError: a preference or the strength is not positive.
    """

    def __init__(self, preference_T: Sequence[float], strength: float = 1.0) -> None:
        self._preference_T = np.asarray(preference_T, dtype=np.float64)
        if not (np.isfinite(self._preference_T).all() and (self._preference_T > 0).all()):
            raise ValueError(f"a preference must be positive and finite for each task, found {list(preference_T)}")
        if not strength > 0:
            raise ValueError(f"strength must be > 0, found {strength}")
        self._strength = strength
        self._min_norm = MinNormWeighting()

    def __call__(self, gram_AA: np.ndarray, losses_A: np.ndarray, tasks_A: np.ndarray) -> Weights:
        """Return the weights; `certified` is that of the min-norm point of the h_t."""
        refuse_negative(losses_A, tasks_A, "preference")
        preference_A = self._preference_T[tasks_A]
        weighted_A = preference_A * losses_A
        gram_AA = gram_AA * np.outer(preference_A, preference_A)
        behind_A = 2 - weighted_A / (weighted_A.max() or 1.0)
        kappa_squared = self._strength * np.trace(gram_AA) / len(tasks_A) ** 2
        lifted = self._min_norm(gram_AA + kappa_squared * np.outer(behind_A, behind_A), losses_A, tasks_A)
        return Weights(share(preference_A * lifted.alpha_A), lifted.certified)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the solver."""
        return self._min_norm.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of the solver."""
        self._min_norm.load_state_dict(state)
