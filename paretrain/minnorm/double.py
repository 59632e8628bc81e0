"""The linear systems in float64, with a proximal ridge.

Duplicated or dependent gradients make A singular, so every solve adds a ridge = delta diag(M) with a centre c:
(A + ridge) x = 1 + ridge c. At x = c the ridge cancels, so repeating c <- x converges to the exact solution (proximal
point method, Rockafellar 1976). diag(M) makes the ridge independent of the scales of the gradients.

Shapes: T tasks, F the free ones among them.
"""

import numpy as np
from scipy.linalg.lapack import dposv, dpotrs

from paretrain.minnorm.problem import Problem, block


class Double:
    """Solver of blocks of (A + ridge) x = 1 + ridge c, with c zero at first. It keeps the last factor."""

    def __init__(self, problem: Problem, delta: float):
        self.problem = problem
        self.ridge_T = delta * problem.diag_T
        self.rhs_T = problem.ones_T
        self.matrix_TT: np.ndarray | None = None
        self.factored = b""
        self.factor_FF = np.empty((0, 0))

    def recentre(self, centre_T: np.ndarray) -> None:
        """Use `centre_T` as c in the following solves."""
        self.rhs_T = 1.0 + self.ridge_T * centre_T

    def minimise(self, free: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """Return x_T (zero outside `free`), 1 + ridge c - (A + ridge) x (zero inside) and the error of the latter."""
        key, rhs_F = free.tobytes(), self.rhs_T.take(free)
        if not key:
            raise np.linalg.LinAlgError("the free set is empty: the matrix is indefinite")
        if self.matrix_TT is None:
            # Built when first needed: float32 may suffice.
            self.matrix_TT = self.problem.gram_TT + self.problem.shift
            self.matrix_TT.reshape(-1)[:: len(self.ridge_T) + 1] += self.ridge_T
        if key == self.factored:
            x_F, info = dpotrs(self.factor_FF, rhs_F, lower=1, overwrite_b=1)
        else:
            block_FF = block(self.matrix_TT, free)
            self.factor_FF, x_F, info = dposv(block_FF, rhs_F, lower=1, overwrite_a=1, overwrite_b=1)
            self.factored = key
        if info:
            self.factored = b""
            raise np.linalg.LinAlgError("the regularised Gram is not positive definite")
        x_T = np.zeros(len(self.rhs_T))
        x_T[free] = x_F
        return x_T, self.rhs_T - self.matrix_TT.dot(x_T), self.problem.rounding(x_T)
