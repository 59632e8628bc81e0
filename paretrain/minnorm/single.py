"""The linear systems of hundreds of free gradients: factored in float32 in less than half the time, and still exact.

The float32 factor preconditions conjugate gradients on Ax = 1 in float64; five to eight steps reach the accuracy that
the certificate needs (Carson & Higham 2018, on low-precision factors). A step costs a twentieth of the factorisation.
If the free set has changed little, the last factor is bordered instead of computed anew.

Shapes: T tasks, S those that were factored, K those that were fixed or freed since.
"""

import math

import numpy as np
from scipy.linalg.blas import dsymv, strsm, strsv
from scipy.linalg.lapack import spotrf

from paretrain.minnorm.problem import Problem, block

# Relative to the diagonal. Dependent gradients do not determine the solution; with a lighter ridge the rounding of
# float32 would, with random signs.
RIDGE = 1e-2
STEPS = 16
ROUGH = 1e-5  # relative to the right-hand side, 1
BORDER_FRACTION = 16


class Single:
    """Solver of blocks of Ax = 1. It keeps the last factor."""

    def __init__(self, problem: Problem):
        self.problem = problem
        # In units of the mean diagonal, since the entries themselves may overflow in float32.
        self.matrix_TT = np.empty(problem.gram_TT.shape, dtype=np.float32)
        np.multiply(problem.gram_TT, 1 / problem.scale, out=self.matrix_TT, casting="same_kind")
        self.matrix_TT += np.float32(problem.shift / problem.scale)
        self.matrix_TT.reshape(-1)[:: len(problem.diag_T) + 1] *= 1 + RIDGE
        self.factored = self.freed = np.arange(0)

    def minimise(self, free: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """Return x_T (zero outside `free`), 1 - A x (zero inside) and the error of the latter, good enough to pivot.

        Raises:
            numpy.linalg.LinAlgError: The block is too ill-conditioned for a float32 factor to be of use.
        """
        self.free_T = np.zeros(len(self.problem.diag_T))
        self.free_T[free] = 1.0
        self._prepare(free)
        self.x_T, self.move_T, self.slack_T = (
            np.zeros_like(self.free_T),
            np.zeros_like(self.free_T),
            self.problem.ones_T,
        )
        self.before = math.inf
        return self._descend(ROUGH)

    def polish(self) -> tuple[np.ndarray, np.ndarray, float]:
        """Return the solution of the last `minimise` with the accuracy that the certificate needs."""
        return self._descend(0.0)

    def _descend(self, accuracy: float) -> tuple[np.ndarray, np.ndarray, float]:
        problem = self.problem
        for _ in range(STEPS):
            inside_T = self.slack_T * self.free_T
            error, rounding = float(np.abs(inside_T).max()), problem.rounding(self.x_T)
            if error <= max(accuracy, rounding, 0.05 * problem.target * self.x_T.sum()):
                return self.x_T, self.slack_T, max(2 * error, rounding)
            step_T = self._precondition(inside_T) * self.free_T
            decrease = float(inside_T.dot(step_T))
            self.move_T = step_T + decrease / self.before * self.move_T
            self.before = decrease
            fall_T = dsymv(1.0, problem.gram_TT.T, self.move_T, lower=1) + problem.shift * self.move_T.sum()
            curvature = float(self.move_T.dot(fall_T))
            if not (decrease > 0 and curvature > 0):
                break
            self.x_T = self.x_T + decrease / curvature * self.move_T
            self.slack_T = self.slack_T - decrease / curvature * fall_T
        raise np.linalg.LinAlgError("the float32 preconditioner is too inaccurate")

    def _prepare(self, free: np.ndarray) -> None:
        """Factor the free block, or border the last factor.

        The border consists of the rows of gradients freed since, and of rows of the identity that keep those fixed
        since at zero.
        """
        fixed = (self.free_T[self.factored] == 0).nonzero()[0]
        since_T = self.free_T.copy()
        since_T[self.factored] = 0
        self.freed = since_T.nonzero()[0]
        K, most = len(self.freed) + len(fixed), len(self.factored) // BORDER_FRACTION
        if most < K:
            self.factor_SS, info = spotrf(block(self.matrix_TT, free), lower=1, clean=0, overwrite_a=1)
            if info:
                raise np.linalg.LinAlgError("the block is not positive definite in float32")
            self.factored, self.freed, fixed, K = free, free[:0], free[:0], 0
        freed_rows = self.matrix_TT.take(self.freed, 0)
        border_SK = np.zeros((len(self.factored), K), dtype=np.float32, order="F")
        border_SK[:, : len(self.freed)] = freed_rows.take(self.factored, 1).T
        border_SK[fixed, np.arange(len(self.freed), K)] = 1.0
        self.half_SK = strsm(1.0, self.factor_SS, border_SK, lower=1, overwrite_b=1) if K else border_SK
        schur_KK = -(self.half_SK.T @ self.half_SK)
        schur_KK[: len(self.freed), : len(self.freed)] += freed_rows.take(self.freed, 1)
        self.inverse_KK = np.linalg.inv(schur_KK)

    def _precondition(self, slack_T: np.ndarray) -> np.ndarray:
        # LAPACK's spotrs takes four times as long as two strsv, since it treats one right-hand side as a matrix.
        half_S = strsv(self.factor_SS, slack_T[self.factored], lower=1)
        ends_K = -(self.half_SK.T @ half_S)
        ends_K[: len(self.freed)] += slack_T[self.freed]
        ends_K = self.inverse_KK @ ends_K
        step_T = np.zeros(len(slack_T))
        step_T[self.factored] = strsv(self.factor_SS, half_S - self.half_SK @ ends_K, lower=1, trans=1)
        step_T[self.freed] = ends_K[: len(self.freed)]
        return step_T
