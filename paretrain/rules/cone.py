"""Project unit gradients on the cone of the directions that oppose none of them, from their cosines C alone.

The projection of g_i on {d : g_t · d >= 0 for all t} is Σ_t v_t g_t for the v that minimises vᵀCv over v_i >= 1 and
v_t >= 0 elsewhere. With x = v - e_i and w = Cv, it is optimal where x >= 0, w >= 0 and xᵀw = 0: a linear
complementarity problem of the same matrix for every i.

Block principal pivoting (Júdice & Pires 1994) guesses where x is positive, solves Cv = 0 there, and changes the guess
wherever x or w has a wrong sign: 2 to 7 rounds, whatever M. A ridge makes systems of dependent gradients solvable, and
a proximal step (Rockafellar 1976) takes its effect out of the solution. Where pivoting does not end, the active-set
method of Lawson & Hanson (1974) does, which changes the guess in one place at a time.

Shapes: M gradients, F those of positive x.
"""

import numpy as np
from scipy.linalg.lapack import dposv, dpotrs
from scipy.optimize import nnls

RIDGE = 1e-10
"""The ridge is relative to the diagonal of C, which is 1, and above the rounding of a Cholesky factor."""
ROUNDS = 20
"""Rounds of pivoting before the other method."""
ROUNDING = 8 * float(np.finfo(np.float64).eps)
"""Rounding of an entry of w, relative to Σ_t |v_t|."""


def project(cosines_MM: np.ndarray) -> np.ndarray:
    """Return the v of each gradient, a row each, (M, M)."""
    values_M, vectors_MM = np.linalg.eigh(cosines_MM)
    # Its columns have the angles of the gradients; rounding may have made eigenvalues of C negative.
    unit_MM = np.sqrt(values_M.clip(min=0))[:, None] * vectors_MM.T
    v_MM = np.eye(len(cosines_MM))
    ridged_MM = unit_MM.T @ unit_MM + RIDGE * v_MM
    for task in np.flatnonzero(cosines_MM.min(axis=1, initial=0) < 0):
        x_M = _by_pivoting(ridged_MM, cosines_MM[task])
        if x_M is None:
            x_M = nnls(unit_MM, -unit_MM[:, task], maxiter=100 * len(unit_MM))[0]
        v_MM[task] += x_M
    return v_MM


def _by_pivoting(ridged_MM: np.ndarray, row_M: np.ndarray) -> np.ndarray | None:
    """Return the x of the gradient whose cosines are `row_M`; None where the guess does not settle."""
    free_M = row_M < 0
    for _ in range(ROUNDS):
        free = np.flatnonzero(free_M)
        if not len(free):
            return None
        block_FF = ridged_MM.take(free, 0).take(free, 1).T  # The memory layout that LAPACK overwrites.
        factor_FF, x_F, info = dposv(block_FF, -row_M[free], lower=1, overwrite_a=1)
        if info:
            return None
        x_M = np.zeros_like(row_M)
        x_M[free] = x_F
        w_M = row_M + ridged_MM @ x_M
        wrong_M = np.where(free_M, x_M < 0, w_M < -ROUNDING * (1 + np.abs(x_F).sum()))
        if not wrong_M.any():
            exact_F = dpotrs(factor_FF, RIDGE * x_F - row_M[free], lower=1)[0]
            if exact_F.min() > -RIDGE:  # Otherwise the ridge has decided a sign, and the error of its size stays.
                x_M[free] = exact_F.clip(min=0)
            return x_M
        free_M ^= wrong_M
    return None
