"""The exact min-norm point of T gradients from their Gram matrix alone, with a certificate.

    min over alpha of  alpha' M alpha,   alpha >= 0,  sum(alpha) = 1,   M_ts = <g_t, g_s>

is the subproblem of MGDA (Désidéri 2012; Sener & Koltun 2018, eq. 3). It is solved in float64 on the T x T matrix, so
the cost does not depend on the length of the gradients. The parts, in the order in which a solve uses them:

1. Certificate. alpha is optimal if and only if gap(alpha) = alpha' M alpha - min_t (M alpha)_t is zero (the Frank-Wolfe
   gap, Jaggi 2013); the value is at most 2 gap above the optimum. `solve` never returns without it.
2. Closed forms: one task, two tasks, or a shortest gradient that is itself the answer (such as a zero row).
3. A guess of the support (guess.py), unless the last step's support is given.
4. An equivalent linear complementarity problem without the sum constraint (problem.py). A guess of the support turns
   it into a linear system, solved in float64 with a proximal ridge (double.py) or, for hundreds of gradients, with a
   float32 factor as preconditioner (single.py).
5. Pivoting from support to support, and the fallbacks for when that stalls (search.py).

Ten tasks take about fifty numpy calls, whose overhead dominates the time. That is why this package calls `dot` and
`argmin` where `sum` and `min` would read better: the latter are wrapped in Python and cost a microsecond more each.

Shapes: T tasks.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy.linalg.blas import dsymv

from paretrain.minnorm.descent import Products, descend, small_enough
from paretrain.minnorm.problem import Problem, certificate
from paretrain.minnorm.search import Search, one_hot

__all__ = ["MinNorm", "solve", "solve_by_products"]

PRODUCTS_TOLERANCE = 1e-8


class MinNorm(NamedTuple):
    """The min-norm point and the proof that it is one.

    Attributes:
        alpha_T: The weights, float64, non-negative, of sum 1.
        value: alpha' M alpha, the squared norm of the combined gradient, in the units of the Gram matrix.
        gap: alpha' M alpha - min_t (M alpha)_t, same units. Zero at the optimum, whose value is at least value - 2 gap.
        support: The indices with alpha > 0, ascending; pass it to the next `solve` as its warm start.
        iterations: The number of linear systems solved; of products taken, for `descent`.
        method: The phase that found the answer: `closed_form`, `block_pivoting`, `proximal_newton` or `active_set`; or
            `descent`, see `solve_by_products`.
        certified: Whether gap <= tolerance * trace(M) / T.
    """

    alpha_T: np.ndarray
    value: float
    gap: float
    support: np.ndarray
    iterations: int
    method: str
    certified: bool


def solve(gram_TT: np.ndarray, *, support: np.ndarray | None = None, tolerance: float = 1e-12) -> MinNorm:
    """Minimise alpha' M alpha over the simplex.

    A zero row is a zero gradient; the optimum gives it all the weight, with value 0. Leave out absent tasks beforehand.
    A zero matrix gives equal weights. If several alphas are optimal, one of them is returned, always the same for the
    same arguments.

    Args:
        gram_TT: The Gram matrix of the tasks' gradients, T x T, symmetric, positive semidefinite up to rounding.
        support: The indices with positive alpha in the last step. A warm start changes the time, not the value.
        tolerance: The relative gap, gap / (trace(M) / T), up to which an answer is certified. It cannot be finer than
            the rounding of the Gram matrix: if that was summed in float32, dependent gradients make it indefinite by
            1e-7, and 1e-6 is a sensible tolerance.

    Returns:
        The weights with their certificate. An answer whose gap is above the tolerance (for an indefinite matrix, say)
        has `certified=False`: check it.

    Raises:
        ValueError: The matrix is not square, not finite or not symmetric, or has a negative diagonal.
        IndexError: `support` names a task that does not exist.
    """
    gram_TT = np.ascontiguousarray(gram_TT, dtype=np.float64)
    if gram_TT.ndim != 2 or gram_TT.shape[0] != gram_TT.shape[1] or len(gram_TT) == 0:
        raise ValueError(f"expected a square Gram matrix, T x T with T >= 1; found shape {gram_TT.shape}")
    T = len(gram_TT)
    ones_T = np.ones(T)
    diag_T = gram_TT.diagonal().copy()
    _check(gram_TT, diag_T, ones_T)
    scale = float(diag_T.dot(ones_T)) / T
    target = tolerance * scale

    alpha_T = _closed_form(gram_TT, diag_T)
    if alpha_T is not None:
        value, gap = certificate(gram_TT, alpha_T)
        return MinNorm(alpha_T, value, gap, alpha_T.nonzero()[0], 0, "closed_form", gap <= target)

    search = Search(Problem(gram_TT, diag_T, ones_T, scale, target), tolerance)
    method = search.run(_ascending(T, support) if support is not None and len(support) > 0 else None)
    alpha_T, gap = search.alpha_T, search.gap
    return MinNorm(alpha_T, search.value, gap, alpha_T.nonzero()[0], search.solves, method, gap <= target)


def solve_by_products(gram: Products, *, tolerance: float = PRODUCTS_TOLERANCE) -> MinNorm:
    """Minimise alpha' M alpha over the simplex for thousands of tasks, from products of M with vectors; see descent.py.

    It remembers nothing, and ends after a fixed number of products: on the hardest problems, with `certified=False`.

    Args:
        gram: M, of positive diagonal: leave out tasks without a gradient beforehand.
        tolerance: as for `solve`. A certified gap is also at most 1e-4 of the value, unless it is below 1e-12 of the
            mean of the diagonal.
    """
    alpha_T, slopes_T, products = descend(gram, tolerance)
    value = float(alpha_T.dot(slopes_T))
    gap = max(0.0, value - float(slopes_T.min()))
    certified = small_enough(gap, value, float(gram.diagonal().mean()), tolerance)
    return MinNorm(alpha_T, max(0.0, value), gap, alpha_T.nonzero()[0], products, "descent", certified)


def _check(gram_TT: np.ndarray, diag_T: np.ndarray, ones_T: np.ndarray) -> None:
    # Two products, one with each triangle, cover every entry at a tenth of the cost of comparing with the transpose,
    # which defeats the cache. A NaN or infinity anywhere makes the sum of squares not finite.
    lower_T, upper_T = dsymv(1.0, gram_TT.T, ones_T, lower=1), dsymv(1.0, gram_TT.T, ones_T, lower=0)
    if not math.isfinite(lower_T.dot(lower_T) + upper_T.dot(upper_T)) and not np.isfinite(gram_TT).all():
        raise ValueError("expected a finite Gram matrix; found NaN or infinite entries")
    difference_T = lower_T - upper_T
    if not math.sqrt(difference_T.dot(difference_T)) <= 1e-6 * len(diag_T) * diag_T[diag_T.argmax()]:
        raise ValueError("expected a symmetric Gram matrix; its triangles have different row sums")
    if diag_T[diag_T.argmin()] < 0:
        raise ValueError(f"expected squared norms on the Gram's diagonal; found {diag_T.min()}")


def _closed_form(gram_TT: np.ndarray, diag_T: np.ndarray) -> np.ndarray | None:
    T = len(diag_T)
    shortest = diag_T.argmin()
    row_T = gram_TT[shortest]
    if row_T[row_T.argmin()] >= diag_T[shortest]:
        return one_hot(T, shortest) if diag_T[diag_T.argmax()] > 0 else np.full(T, 1 / T)
    if T == 2:
        # Both are positive once the shortest gradient is ruled out as the answer, so nothing is clipped to [0, 1].
        alpha_T: np.ndarray = diag_T[::-1] - gram_TT[0, 1]
        alpha_T /= alpha_T.sum()
        return alpha_T
    return None


def _ascending(T: int, support: np.ndarray) -> np.ndarray:
    chosen_T = np.zeros(T, dtype=bool)
    chosen_T[support] = True
    return chosen_T.nonzero()[0]
