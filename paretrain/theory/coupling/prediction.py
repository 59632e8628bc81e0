"""Predict the test errors of many penalties from estimates of the tasks: equation 5, or 13 where tasks share rows.

Both are linear in Γ and the noise, so that one solution of the fixed points serves all estimates. The effects are taken
to be alike in all p directions: Γ_j = (Γ/p) x the number of directions with the eigenvalue s_j.

Shapes: T tasks, J distinct eigenvalues of the features' covariance, L penalties, P features.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from paretrain.theory.arrays import Array
from paretrain.theory.asymptotics import resolvent, shared_factors
from paretrain.theory.coupling.moments import Moments


@dataclass(frozen=True)
class OwnRows:
    """Hold the linear map from (Γ/p, σ²) to the test errors, for tasks with their own rows."""

    effects_LTTT: Array
    noise_LTT: Array

    def errors(self, moments: Moments) -> Array:
        """Return the predicted test errors (L x T)."""
        of_effects_LT = np.einsum("ltsr,sr->lt", self.effects_LTTT, moments.effects_TT)
        errors_LT: Array = of_effects_LT + self.noise_LTT @ np.diag(moments.noise_TT)
        return errors_LT


@dataclass(frozen=True)
class SharedRows:
    """Hold the linear map from (Γ/p, Ω) to the test errors, for tasks with the same rows."""

    basis_LTK: Array
    effects_LKK: Array
    noise_LKK: Array

    def errors(self, moments: Moments) -> Array:
        """Return the predicted test errors (L x T)."""
        turned_LKT = self.basis_LTK.transpose(0, 2, 1)
        errors_LKK = self.effects_LKK * (turned_LKT @ moments.effects_TT @ self.basis_LTK)
        errors_LKK = errors_LKK + self.noise_LKK * (turned_LKT @ moments.noise_TT @ self.basis_LTK)
        errors_LT: Array = np.einsum("ltk,lkm,ltm->lt", self.basis_LTK, errors_LKK, self.basis_LTK, optimize=True)
        return errors_LT


def predict_own_rows(penalties: Sequence[Array], spectrum_P: Array, sizes_T: Array) -> OwnRows:
    """Solve equations 4 and 5 for each Q; task t has `sizes_T[t]` rows of its own."""
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
    return OwnRows(np.array(effects), np.array(noise))


def predict_shared_rows(penalties: Sequence[Array], spectrum_P: Array, num_rows: float) -> SharedRows:
    """Solve equations 12 and 13 for each Q; all tasks have the same `num_rows` rows."""
    values_J, shares_J = binned_spectrum(spectrum_P)
    counts_J = shares_J * len(spectrum_P)
    bases, effects, noise = [], [], []
    for penalty_TT in penalties:
        penalties_K, basis_TK = np.linalg.eigh(penalty_TT)
        factors = shared_factors(penalties_K, len(spectrum_P) / num_rows, values_J, shares_J)
        bases.append(basis_TK)
        effects.append(np.einsum("j,jkl->kl", counts_J, factors.bias_JKK))
        noise.append(factors.noise_KK)
    return SharedRows(np.array(bases), np.array(effects), np.array(noise))


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
