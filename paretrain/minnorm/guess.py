"""A first guess of the support, from the Gram matrix alone. A bad guess costs time, never exactness.

Shapes: T tasks.
"""

import numpy as np
from scipy.linalg.blas import dsymv

from paretrain.minnorm.descent import project
from paretrain.minnorm.problem import EPS, Problem

DESCENT_FROM = (
    300  # from this many tasks, products with the Gram matrix are so much cheaper than solves that descent pays
)
DESCENT_STEPS = 16


def first_guess(problem: Problem) -> np.ndarray:
    """Return the indices, ascending, of the gradients that are likely in the support."""
    return _near(problem) if len(problem.diag_T) < DESCENT_FROM else _descent(problem)


def _near(problem: Problem) -> np.ndarray:
    """Choose the gradients with a small component along a first mix, the optimum for orthogonal ones, 1 / diag(M)."""
    ones_T, diag_T = problem.ones_T, problem.diag_T
    mix_T = 1.0 / (diag_T + EPS * problem.scale)
    heights_T = problem.gram_TT.dot(mix_T)
    mean = float(mix_T.dot(heights_T)) / float(mix_T.dot(ones_T))
    if mean > 2.0:
        # On average the others contribute more to a gradient's component than the gradient itself, which contributes 1:
        # few of such strongly correlated gradients are in the support.
        return np.sort(heights_T.argsort(kind="stable")[: 2 + len(diag_T) // 8])
    low_T: np.ndarray = heights_T < mean + 1.0
    return low_T.nonzero()[0]


def _descent(problem: Problem) -> np.ndarray:
    """Take projected gradient steps on the simplex, in the metric diag(M), with Barzilai & Borwein's step (1988)."""
    diag_T = np.maximum(problem.diag_T / problem.scale, EPS)
    alpha_T = 1 / diag_T
    alpha_T /= alpha_T.sum()
    product_T = dsymv(1 / problem.scale, problem.gram_TT.T, alpha_T, lower=1)
    length = 1.0
    for _ in range(DESCENT_STEPS):
        following_T = project(alpha_T - length * product_T / diag_T, diag_T)
        move_T = following_T - alpha_T
        change_T = dsymv(1 / problem.scale, problem.gram_TT.T, move_T, lower=1)
        curvature = float(move_T.dot(change_T))
        if not curvature > 0:
            break
        length = float(move_T.dot(diag_T * move_T)) / curvature
        alpha_T, product_T = following_T, product_T + change_T
    return alpha_T.nonzero()[0]
