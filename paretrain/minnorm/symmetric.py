"""Among all weights with the same combined gradient, the most even ones: those of the smallest sum of squares.

Parallel gradients, and more gradients than dimensions, leave the weights of the min-norm point open: the combination
Σ α_t g_t is unique, but α is not. Which one a solver returns then depends on the order of the tasks. A rule that uses α
for more than the combination, as one that divides it by the gradients' lengths does, needs a choice that does not.

Shapes: F the tasks on the optimal face, D dimensions that the combination leaves open.
"""

import numpy as np

OPEN = 1e-10
"""An eigenvalue of the Gram matrix, relative to its size, below which a direction changes nothing but rounding."""
ROUNDS = 50


def most_even(gram_TT: np.ndarray, alpha_T: np.ndarray) -> np.ndarray:
    """Return the min-norm weights whose sum of squares is smallest.

    They do not depend on the order of the tasks. Where α is unique, it is returned unchanged.

    Args:
        gram_TT: Gram matrix of the gradients.
        alpha_T: weights of the min-norm point.
    """
    scale = float(gram_TT.diagonal().mean())
    slopes_T = gram_TT @ alpha_T
    # Only tasks whose gradients touch the plane of the min-norm point can have weight in any solution.
    face = np.flatnonzero((alpha_T > 0) | (slopes_T - slopes_T.min() <= 1e-9 * scale))
    if scale == 0 or len(face) < 2:
        return alpha_T
    # α must keep the combination and the sum: its components in the directions where this matrix is not zero.
    kept_FF, smallest = gram_TT[np.ix_(face, face)] / scale + 1, OPEN * len(face)
    if _is_above(kept_FF, smallest):
        return alpha_T
    values_F, vectors_FF = np.linalg.eigh(kept_FF)
    fixed_FK = vectors_FF[:, values_F > smallest]
    even_F = _nearest_to_zero(fixed_FK, fixed_FK.T @ alpha_T[face])
    even_T = np.zeros_like(alpha_T)
    even_T[face] = even_F / even_F.sum()
    return even_T


def _is_above(matrix_FF: np.ndarray, smallest: float) -> bool:
    """Return whether all eigenvalues are above `smallest`: a tenth of the cost of computing them."""
    try:
        np.linalg.cholesky(matrix_FF - smallest * np.eye(len(matrix_FF)))
    except np.linalg.LinAlgError:
        return False
    return True


def _nearest_to_zero(fixed_FK: np.ndarray, target_K: np.ndarray) -> np.ndarray:
    """Return the x >= 0 of the smallest norm with  fixed' x = target.

    It is max(fixed y, 0) for the y that solves  fixed' max(fixed y, 0) = target,  by Newton's method.
    """
    y_K = target_K.copy()
    x_F: np.ndarray = (fixed_FK @ y_K).clip(min=0)
    for _ in range(ROUNDS):
        missing_K = target_K - fixed_FK.T @ x_F
        if np.abs(missing_K).max() <= 1e-14:
            break
        free_FK = fixed_FK[x_F > 0]
        y_K += np.linalg.lstsq(free_FK.T @ free_FK, missing_K, rcond=1e-12)[0]
        x_F = (fixed_FK @ y_K).clip(min=0)
    return x_F
