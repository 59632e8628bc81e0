"""The form in which the problem is solved.

Reduction. With A = M + shift 11', alpha is x / sum(x) for the x that solves  min 1/2 x'Ax - 1'x  over x >= 0: no sum
constraint is left, and the optimality conditions are the linear complementarity problem  x >= 0,  slack = 1 - Ax <= 0,
x'slack = 0. A "free" set, the guess of the support, determines x by one linear system.

Shapes: T tasks, F the free ones among them.
"""

import numpy as np

EPS = float(np.finfo(np.float64).eps)


class Problem:
    """The data that all solves of one Gram matrix share. `target` is the gap up to which an answer is certified."""

    def __init__(self, gram_TT: np.ndarray, diag_T: np.ndarray, ones_T: np.ndarray, scale: float, target: float):
        self.gram_TT, self.diag_T, self.ones_T, self.scale, self.target = gram_TT, diag_T, ones_T, scale, target
        self.root_T = np.sqrt(diag_T)
        self.longest = float(self.root_T[self.root_T.argmax()])
        # Any positive shift is correct. One of the size of the optimal value neither loses the short gradients to
        # rounding nor vanishes beside the long ones.
        self.shift = max(float(diag_T[diag_T.argmin()]), 1e-10 * scale)

    def rounding(self, x_T: np.ndarray) -> float:
        """Return a bound of the rounding in an entry of M x: |M_ts| is at most the product of the two norms."""
        return 4 * EPS * self.longest * float(self.root_T.dot(np.abs(x_T)))


def certificate(gram_TT: np.ndarray, alpha_T: np.ndarray) -> tuple[float, float]:
    """Return the value alpha' M alpha and the gap; either is set to zero if rounding makes it negative."""
    product_T = gram_TT.dot(alpha_T)
    value = float(alpha_T.dot(product_T))
    return max(0.0, value), max(0.0, value - float(product_T[product_T.argmin()]))


def block(matrix_TT: np.ndarray, free: np.ndarray) -> np.ndarray:
    """Return a copy of the free rows and columns, in a memory layout that LAPACK can overwrite in place.

    That is column-major order, which for a symmetric block is the transpose.
    """
    if len(free) == len(matrix_TT):
        return matrix_TT.copy().T
    return matrix_TT.take(free, 0).take(free, 1).T
