"""Fit linear heads in closed form from second moments: each column alone, coupled by (λ, μ), or as theory has it.

The penalties are those of equation 2 with features as they are and labels of unit variance. Test errors are estimated
by generalised cross-validation (equation 17), relative to each column's variance.

Shapes: N rows, D features, C columns of labels, T columns of a block, K directions (as many).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh

from paretrain.theory.arrays import Array
from paretrain.theory.asymptotics import coupling
from paretrain.theory.coupling.moments import Moments
from paretrain.theory.coupling.second_moments import Column

MAX_UNKNOWNS = 1536
"""Weights of a block that are solved for at once where its columns have different rows."""


@dataclass(frozen=True)
class LinearFit:
    """Hold weights and intercepts for labels as they are, and each column's cross-validated error over its variance."""

    name: str
    weights_DC: Array
    intercepts_C: Array
    validated_C: Array

    def predict(self, features_ND: Array) -> Array:
        """Return the predictions (N x C)."""
        predictions_NC: Array = features_ND @ self.weights_DC + self.intercepts_C
        return predictions_NC


def fit_alone(columns: Sequence[Column], steps: Array | None = None) -> LinearFit:
    """Fit each column by ridge regression, each with the penalty of the smallest cross-validated error."""
    steps = np.geomspace(1e-6, 1e3, 28) if steps is None else steps
    weights, validated = [], []
    for column in columns:
        scale = _scale([column])
        one = np.ones((1, 1))
        tried = [_fit_shared([column], one, one, np.array([scale * step])) for step in steps]
        best_D1, error_1 = min(tried, key=lambda found: float(found[1][0]))
        weights.append(best_D1[:, 0])
        validated.append(error_1[0])
    return _finished("each alone", columns, np.array(weights).T, np.array(validated))


def fit_coupled(
    columns: Sequence[Column], blocks: Sequence[Sequence[int]], alone: LinearFit, steps: Array | None = None
) -> LinearFit | None:
    """Couple the columns of each block by the λ and μ of the smallest cross-validated error; None: that is too large.

    Columns in no block are taken from `alone`.
    """
    steps = np.geomspace(1e-4, 1e2, 7) if steps is None else steps
    chosen: dict[int, tuple[Array, float]] = {}
    words = []
    for block in blocks:
        members = [columns[c] for c in block]
        if not _solvable(members):
            return None
        scale, size = _scale(members), len(members)
        tried = []
        for common in steps:
            for own in steps:
                penalty_TT = coupling(size, scale * common, scale * own)
                tried.append((*_fit(members, penalty_TT, np.ones(size)), scale * common, scale * own))
        weights_DT, validated_T, common, own = min(tried, key=lambda found: float(found[1].mean()))
        chosen |= dict(zip(block, zip(weights_DT.T, validated_T, strict=True), strict=True))
        words.append(f"λ {common:.3g}, μ {own:.3g}")
    distinct = list(dict.fromkeys(words))
    return _assembled(
        f"coupled ({'; '.join(distinct[:3])}{' ...' if len(distinct) > 3 else ''})", columns, chosen, alone
    )


def fit_by_theory(
    columns: Sequence[Column], blocks: Sequence[Sequence[int]], moments: Sequence[Moments], alone: LinearFit
) -> LinearFit | None:
    """Couple the columns of each block as its estimated moments (of labels with unit variance) ask for.

    Equation 14 where the columns share their rows; else Q* = Γ⁻¹ and a* = n/(p σ²) of equation 9. What the estimates
    lack to be positive definite is added. None: a block is too large, or a task's noise is not known.
    """
    chosen: dict[int, tuple[Array, float]] = {}
    for block, found in zip(blocks, moments, strict=True):
        members = [columns[c] for c in block]
        if not _solvable(members) or np.isnan(found.effects_TT).any() or np.isnan(np.diag(found.noise_TT)).any():
            return None
        effects_TT = _positive(found.effects_TT)
        if _share_rows(members):
            ratios_K, directions_TK = eigh(effects_TT, _positive(found.noise_TT))
            penalties_K = 1 / (members[0].covariance.count * np.maximum(ratios_K, 1e-12))
            fitted = _fit_shared(members, directions_TK, np.linalg.inv(directions_TK), penalties_K)
        else:
            count_T = np.array([member.covariance.count for member in members])
            weights_T = count_T / np.maximum(np.diag(found.noise_TT), 1e-3)
            fitted = _fit_apart(members, np.linalg.inv(effects_TT).astype(float), weights_T)
        chosen |= dict(zip(block, zip(fitted[0].T, fitted[1], strict=True), strict=True))
    return _assembled("coupled by theory", columns, chosen, alone)


def _fit(members: Sequence[Column], penalty_TT: Array, weights_T: Array) -> tuple[Array, Array]:
    if _share_rows(members):
        penalties_K, basis_TK = np.linalg.eigh(penalty_TT)
        return _fit_shared(members, basis_TK, basis_TK.T, penalties_K)
    return _fit_apart(members, penalty_TT, weights_T)


def _fit_shared(
    members: Sequence[Column], directions_TK: Array, back_KT: Array, penalties_K: Array
) -> tuple[Array, Array]:
    """Fit each direction by ridge regression, and return weights (D x T) and cross-validated errors (T)."""
    values_D, vectors_DD = members[0].covariance.eigen()
    cross_DT = np.array([member.cross_D for member in members]).T
    shrunk_DK = 1 / (values_D[:, None] + penalties_K)
    turned_DT = ((vectors_DD.T @ cross_DT @ directions_TK) * shrunk_DK) @ back_KT
    train_T = 1 - 2 * ((vectors_DD.T @ cross_DT) * turned_DT).sum(axis=0) + (values_D @ turned_DT**2)
    freedom_T = (directions_TK * back_KT.T) @ (values_D @ shrunk_DK) + 1
    return vectors_DD @ turned_DT, _validated(train_T, freedom_T, np.full(len(members), members[0].covariance.count))


def _fit_apart(members: Sequence[Column], penalty_TT: Array, weights_T: Array) -> tuple[Array, Array]:
    """Solve equation 2 for columns with different rows: a_t S_t w_t + Σ_s Q_ts w_s = a_t b_t."""
    width, size = len(members[0].cross_D), len(members)
    system = np.kron(penalty_TT, np.eye(width)).reshape(size, width, size, width)
    for t, member in enumerate(members):
        system[t, :, t, :] += weights_T[t] * member.covariance.matrix_DD
    inverse = np.linalg.inv(system.reshape(size * width, size * width))
    cross_TD = np.array([weight * member.cross_D for weight, member in zip(weights_T, members, strict=True)])
    fitted_TD = (inverse @ cross_TD.ravel()).reshape(size, width)
    own_TDD = inverse.reshape(size, width, size, width)[np.arange(size), :, np.arange(size), :]
    covariance_TDD = np.array([member.covariance.matrix_DD for member in members])
    train_T = np.array(
        [
            1 - 2 * m.cross_D @ w_D + w_D @ m.covariance.matrix_DD @ w_D
            for m, w_D in zip(members, fitted_TD, strict=True)
        ]
    )
    freedom_T = weights_T * np.einsum("tde,ted->t", own_TDD, covariance_TDD) + 1
    return fitted_TD.T, _validated(train_T, freedom_T, np.array([member.covariance.count for member in members]))


def _validated(train_T: Array, freedom_T: Array, count_T: Array) -> Array:
    kept_T = 1 - freedom_T / count_T
    validated_T: Array = np.where(kept_T > 1e-9, np.maximum(train_T, 0) / np.maximum(kept_T, 1e-9) ** 2, np.inf)
    return validated_T


def _assembled(
    name: str, columns: Sequence[Column], chosen: dict[int, tuple[Array, float]], alone: LinearFit
) -> LinearFit:
    """Take the chosen weights, and `alone` where none were chosen."""
    weights = [
        chosen[c][0] if c in chosen else alone.weights_DC[:, c] / column.deviation for c, column in enumerate(columns)
    ]
    validated = [chosen[c][1] if c in chosen else alone.validated_C[c] for c in range(len(columns))]
    return _finished(name, columns, np.array(weights).T, np.array(validated))


def _finished(name: str, columns: Sequence[Column], scaled_DC: Array, validated_C: Array) -> LinearFit:
    """Go back from labels with mean 0 and unit variance to labels as they are."""
    weights_DC = scaled_DC * np.array([column.deviation for column in columns])
    means_DC = np.array([column.feature_mean_D for column in columns]).T
    intercepts_C = np.array([column.mean for column in columns]) - (means_DC * weights_DC).sum(axis=0)
    return LinearFit(name, weights_DC, intercepts_C, validated_C)


def _share_rows(members: Sequence[Column]) -> bool:
    return all(member.covariance is members[0].covariance for member in members)


def _solvable(members: Sequence[Column]) -> bool:
    return _share_rows(members) or len(members) * len(members[0].cross_D) <= MAX_UNKNOWNS


def _scale(members: Sequence[Column]) -> float:
    """Return the mean variance of a feature, the unit of the penalties."""
    return float(np.mean([np.trace(m.covariance.matrix_DD) / len(m.cross_D) for m in members])) or 1.0


def _positive(matrix_TT: Array) -> Array:
    values_T, vectors_TT = np.linalg.eigh(matrix_TT)
    floor = 1e-3 * max(float(values_T.max()), 1e-12)
    positive_TT: Array = (vectors_TT * np.maximum(values_T, floor)) @ vectors_TT.T
    return positive_TT
