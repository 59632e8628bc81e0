"""Predict test errors of many penalties from one estimate of the tasks (equation 5, linear in Γ and σ²).

Shapes: T tasks, J distinct eigenvalues of the features' covariance, L penalties.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from paretrain.theory.arrays import Array
from paretrain.theory.asymptotics import resolvent


@dataclass(frozen=True)
class RiskGrid:
    """Hold the linear map from (Γ/p, σ²) to the test errors, for each of L penalties."""

    penalties_LTT: Array
    effects_LTTT: Array
    noise_LTT: Array

    def errors(self, effects_TT: Array, noise_T: Array) -> Array:
        """Return the predicted test errors (L x T)."""
        of_effects_LT = np.einsum("ltsr,sr->lt", self.effects_LTTT, effects_TT)
        errors_LT: Array = of_effects_LT + self.noise_LTT @ noise_T
        return errors_LT


def risk_grid(penalties: Sequence[Array], spectrum_P: Array, sizes_T: Array) -> RiskGrid:
    """Solve equation 4 for each penalty Q.

    The features' covariance has the eigenvalues `spectrum_P`; task t has `sizes_T[t]` rows of its own. The effects are
    alike in all p directions: Γ_j = (Γ/p) x the number of directions with the eigenvalue s_j.
    """
    values_J, shares_J = binned_spectrum(spectrum_P)
    ratio_T, ones_T = len(spectrum_P) / sizes_T, np.ones(len(sizes_T))
    effects, noise = [], []
    for penalty_TT in penalties:
        solved = resolvent(penalty_TT, ratio_T, ones_T, values_J, shares_J)
        from_bias_TT = np.linalg.inv(np.eye(len(sizes_T)) - solved.spread_TT * (ratio_T * solved.kappa_T**2))
        bias_JTT = solved.green_JTT @ penalty_TT
        counts_J = shares_J * len(spectrum_P)
        bias_TTT = np.einsum("j,jts,jtr->tsr", values_J * counts_J, bias_JTT, bias_JTT, optimize=True)
        effects.append(np.einsum("tu,usr->tsr", from_bias_TT, bias_TTT))
        noise.append(from_bias_TT)
    return RiskGrid(np.array(penalties), np.array(effects), np.array(noise))


def binned_spectrum(spectrum_P: Array, num_bins: int = 24) -> tuple[Array, Array]:
    """Return the means and shares of the eigenvalues in bins of equal width on a logarithmic scale."""
    spectrum_P = np.maximum(spectrum_P, 1e-8 * spectrum_P.max())
    logs_P = np.log(spectrum_P)
    edges = np.linspace(logs_P.min(), logs_P.max(), num_bins + 1)[1:-1]
    bins_P = np.searchsorted(edges, logs_P)
    counts = np.bincount(bins_P, minlength=num_bins)
    sums = np.bincount(bins_P, weights=spectrum_P, minlength=num_bins)
    full = counts > 0
    return sums[full] / counts[full], counts[full] / len(spectrum_P)
