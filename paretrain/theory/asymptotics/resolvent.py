"""The fixed point that all limits of coupled ridge regression share (equation 4).

Shapes: T tasks, J distinct eigenvalues of the features' covariance.
"""

from dataclasses import dataclass

import numpy as np

from paretrain.theory.arrays import Array

_TOLERANCE = 1e-12
_MAX_ITERATIONS = 500


class NotConvergedError(ArithmeticError):
    """The fixed point was not found to full precision."""


@dataclass(frozen=True)
class Resolvent:
    """Hold κ, G_j and S of equations 4 and 5. They depend on features and sizes alone, not on the labels."""

    kappa_T: Array
    green_JTT: Array
    spread_TT: Array


def resolvent(penalty_TT: Array, ratio_T: Array, weights_T: Array, values_J: Array, shares_J: Array) -> Resolvent:
    """Solve κ_t (1 + a_t γ_t Σ_j h_j s_j [G_j]_tt) = a_t for κ by Newton's method in log κ, from above.

    `penalty_TT` is Q, `ratio_T` γ = p/n, `weights_T` a, `values_J` and `shares_J` the spectrum s and h. Where a Newton
    step does not bring κ closer, the plain iteration, which falls towards the solution from κ = a, takes its place.
    """
    terms = penalty_TT, ratio_T, weights_T, values_J, shares_J
    log_kappa_T = np.log(weights_T)
    green_JTT, spread_TT, image_T = _apply(log_kappa_T, *terms)
    for _ in range(_MAX_ITERATIONS):
        residual_T = log_kappa_T - np.log(image_T)
        size = float(np.abs(residual_T).max())
        if size < _TOLERANCE:
            return Resolvent(np.exp(log_kappa_T), green_JTT, spread_TT)
        jacobian_TT = np.eye(len(ratio_T)) - (ratio_T * image_T)[:, None] * spread_TT * np.exp(log_kappa_T)
        newton_T = log_kappa_T - np.clip(np.linalg.solve(jacobian_TT, residual_T), -5, 5)
        at_newton = _apply(newton_T, *terms)
        if float(np.abs(newton_T - np.log(at_newton[2])).max()) < size:
            log_kappa_T, (green_JTT, spread_TT, image_T) = newton_T, at_newton
        else:
            log_kappa_T = np.log(image_T)
            green_JTT, spread_TT, image_T = _apply(log_kappa_T, *terms)
    raise NotConvergedError(f"κ still moves by a factor of {np.exp(size):.3g} after {_MAX_ITERATIONS} iterations")


def _apply(
    log_kappa_T: Array, penalty_TT: Array, ratio_T: Array, weights_T: Array, values_J: Array, shares_J: Array
) -> tuple[Array, Array, Array]:
    """Return G_j, S and the right side of equation 4."""
    green_JTT = np.linalg.inv(values_J[:, None, None] * np.diag(np.exp(log_kappa_T)) + penalty_TT)
    trace_T = np.einsum("j,jtt->t", shares_J * values_J, green_JTT)
    spread_TT = np.einsum("j,jts->ts", shares_J * values_J**2, green_JTT**2)
    return green_JTT, spread_TT, weights_T / (1 + weights_T * ratio_T * trace_T)
