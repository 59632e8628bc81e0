"""Tasks that share their rows: every direction of the penalty is a ridge problem of its own (equations 12 to 14).

Shapes: T tasks, K directions (as many as tasks), J distinct eigenvalues of the features' covariance.
"""

from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh

from paretrain.theory.arrays import Array
from paretrain.theory.asymptotics.population import Population
from paretrain.theory.asymptotics.resolvent import resolvent


def shared_kappa(penalties_K: Array, ratio: float, values_J: Array, shares_J: Array) -> Array:
    """Solve equation 12 for κ of each direction; they do not interact, and equal penalties have equal κ."""
    one = np.ones(1)
    distinct, places_K = np.unique(penalties_K, return_inverse=True)
    solved = [resolvent(np.array([[q]]), ratio * one, one, values_J, shares_J).kappa_T[0] for q in distinct]
    return np.array(solved)[places_K]


def shared_error_covariance(
    penalty_TT: Array, population: Population, noise_TT: Array, ratio: float, *, train: bool = False
) -> Array:
    """Return the covariance R (T x T) of the tasks' errors on new rows, or on the training rows (equation 13).

    Its diagonal holds the test errors, noise included. `noise_TT` is Ω, the noise's covariance between tasks, which
    takes the place of the population's `noise_T`; `ratio` is γ = p/n of the common rows.
    """
    penalties_K, basis_TK = np.linalg.eigh(penalty_TT)
    errors_KK = _error_covariance(penalties_K, basis_TK, population, noise_TT, ratio, train)
    errors_TT: Array = basis_TK @ errors_KK @ basis_TK.T
    return errors_TT


@dataclass(frozen=True)
class CanonicalDirections:
    """Hold A (T x K) with AᵀΩA = I and AᵀΓA = diag(`ratios_K`), strongest first, and the ridge penalty of each."""

    directions_TK: Array
    ratios_K: Array
    penalties_K: Array


def canonical_directions(signal_TT: Array, noise_TT: Array, ratio: float) -> CanonicalDirections:
    """Return the best linear estimator for tasks that share their rows (equation 14).

    Regress each column of Y A on X by ridge with its penalty (in 1/(2n)|·|² + q/2|w|²), and go back by A⁻¹. A direction
    without signal has an infinite penalty: predict zero for it.
    """
    ratios_K, directions_TK = eigh(signal_TT, noise_TT)
    ratios_K, directions_TK = ratios_K[::-1], directions_TK[:, ::-1]
    with np.errstate(divide="ignore"):
        penalties_K = np.where(ratios_K > 1e-12 * ratios_K[0], ratio / ratios_K, np.inf)
    return CanonicalDirections(directions_TK, ratios_K, penalties_K)


def canonical_error_covariance(
    canonical: CanonicalDirections, population: Population, noise_TT: Array, ratio: float
) -> Array:
    """Return the covariance (T x T) of the tasks' errors on new rows after ridge on each canonical direction."""
    penalties_K = np.minimum(canonical.penalties_K, 1e12)  # large enough to predict zero
    errors_KK = _error_covariance(penalties_K, canonical.directions_TK, population, noise_TT, ratio, False)
    back_KT = np.linalg.inv(canonical.directions_TK)
    errors_TT: Array = back_KT.T @ errors_KK @ back_KT
    return errors_TT


@dataclass(frozen=True)
class SharedFactors:
    """Hold equation 13 as a linear map: E[e eᵀ] = Σ_j bias_j ∘ Γ~_j + noise ∘ Ω~, and κ of each direction."""

    bias_JKK: Array
    noise_KK: Array
    kappa_K: Array


def shared_factors(penalties_K: Array, ratio: float, values_J: Array, shares_J: Array) -> SharedFactors:
    """Solve equations 12 and 13 for ridge with the penalties q_k on the same rows."""
    kappa_K = shared_kappa(penalties_K, ratio, values_J, shares_J)
    green_JK = 1 / (values_J[:, None] * kappa_K + penalties_K)
    bias_JK = penalties_K * green_JK
    echo_KK = ratio * np.outer(kappa_K, kappa_K) * np.einsum("j,jk,jl->kl", shares_J * values_J**2, green_JK, green_JK)
    bias_JKK = values_J[:, None, None] * bias_JK[:, :, None] * bias_JK[:, None, :]
    return SharedFactors(bias_JKK / (1 - echo_KK), 1 / (1 - echo_KK), kappa_K)


def _error_covariance(
    penalties_K: Array, basis_TK: Array, population: Population, noise_TT: Array, ratio: float, train: bool
) -> Array:
    """Return E[e_k e_l] of ridge with penalty q_k on the label Y b_k, for the columns b_k of any basis."""
    factors = shared_factors(penalties_K, ratio, population.values_J, population.shares_J)
    gram_JKK = basis_TK.T @ population.gram_JTT @ basis_TK
    errors_KK: Array = (factors.bias_JKK * gram_JKK).sum(axis=0) + factors.noise_KK * (basis_TK.T @ noise_TT @ basis_TK)
    return errors_KK * np.outer(factors.kappa_K, factors.kappa_K) if train else errors_KK
