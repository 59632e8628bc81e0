"""The min-norm point by trying every support: slow, and nothing in common with the solver."""

from itertools import combinations

import numpy as np


def min_norm_by_enumeration(gram_TT: np.ndarray) -> tuple[np.ndarray, float]:
    """The α on the simplex that minimises αᵀMα, and that value. For T up to about 10.

    For each support S the stationary point of the Lagrangian solves M_SS α = λ1, 1ᵀα = 1; among those with α >= 0 the
    best one is the minimum, since some support is the optimal one.
    """
    num_tasks = len(gram_TT)
    scale = np.trace(gram_TT) or 1.0
    best_T, best = np.full(num_tasks, 1 / num_tasks), np.inf
    for size in range(1, num_tasks + 1):
        for support in map(list, combinations(range(num_tasks), size)):
            system = np.ones((size + 1, size + 1))
            system[:size, :size] = gram_TT[np.ix_(support, support)] / scale
            system[size, size] = 0
            solution = np.linalg.lstsq(system, np.eye(size + 1)[size], rcond=None)[0][:size]
            if (solution < -1e-12).any() or abs(solution.sum() - 1) > 1e-9:
                continue
            alpha_T = np.zeros(num_tasks)
            alpha_T[support] = solution.clip(min=0)
            alpha_T /= alpha_T.sum()
            value = float(alpha_T @ gram_TT @ alpha_T)
            if value < best:
                best_T, best = alpha_T, value
    return best_T, best
