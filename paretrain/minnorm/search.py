"""The search for the free set whose solution is complementary: three phases, the fastest first.

1. Block principal pivoting (Júdice & Pires 1994) with a tiny ridge: fix the negative, free the violated, all at once,
   as long as that lowers the number of wrong signs. The set at most doubles in a round, so it stays near the support
   and, in low rank, near independence. 1 to 4 solves from the guess, 1 to 3 from the last support.
2. Where that stalls (many dependent gradients), one proximal step with a coarse ridge by semismooth Newton (Li, Sun &
   Toh 2018; Keerthi & DeCoste 2005): convex and differentiable, with an exact line search, so it converges from
   anywhere. It finds most of the support; pivoting tries again from there.
3. Lawson & Hanson's active set (1974; on this problem, the steps of Wolfe 1976) moves one index at a time from the
   best point so far. It is finite, and it ends the rest.

Shapes: T tasks, F the free ones among them.
"""

import math
from collections.abc import Callable

import numpy as np

from paretrain.minnorm.double import Double
from paretrain.minnorm.guess import first_guess
from paretrain.minnorm.problem import Problem, certificate
from paretrain.minnorm.single import Single

TINY = 1e-11  # least ridge that holds for thousands of tasks: above a Cholesky factor's rounding, below alpha's feeling
COARSE = 1e-3  # ridge of the Newton phase, under which dependent gradients are well conditioned
PATIENCE = 6  # rounds of pivoting without fewer wrong signs
CLOSE = 4  # wrong signs, few enough to look closer
NEWTON_STEPS = 30
REFINEMENTS = 4
SINGLE_FROM = 512  # free gradients from which a float32 factor with its refinement beats one in float64
SMALL = 64  # a free set may always grow to this: factoring it costs less than another round


def one_hot(T: int, index: np.intp) -> np.ndarray:
    """All the weight on one task."""
    alpha_T = np.zeros(T)
    alpha_T[index] = 1.0
    return alpha_T


class Search:
    """The phases of one solve. `alpha_T`, `value` and `gap` are of the best point that any phase offered."""

    def __init__(self, problem: Problem, tolerance: float):
        self.problem = problem
        # Ten tolerances of ridge leave a gap that one proximal step takes below the tolerance.
        self.tiny = min(max(TINY, 10 * tolerance), COARSE)
        self.single: Single | None = None
        self.gap, self.solves = math.inf, 0

    def run(self, support: np.ndarray | None) -> str:
        """Goes through the phases, from the support of the last step if there is one. Returns the last phase's name."""
        problem = self.problem
        self.free = first_guess(problem) if support is None else support
        if len(self.free) >= SINGLE_FROM:
            self.single = Single(problem)
        # A factor's rounding grows with the tasks. Few of them, of an exact Gram, bear so light a ridge that the first
        # solution needs no proximal step.
        light = TINY * min(1.0, len(problem.diag_T) / 1000) if self.tiny == TINY else self.tiny
        if self._succeeds(self._pivot, light):
            return "block_pivoting"
        if self.single is not None:
            # Where many gradients are dependent, the signs that float32 gives may be those of its rounding.
            self.single = None
            if self._succeeds(self._pivot, light):
                return "block_pivoting"
        self._offer(one_hot(len(problem.diag_T), problem.diag_T.argmin()))
        if self._succeeds(self._newton, COARSE) and self._succeeds(self._pivot, self.tiny):
            return "proximal_newton"
        self._succeeds(self._active_set, self.tiny)
        return "active_set"

    def _succeeds(self, phase: Callable[[], bool], delta: float) -> bool:
        self.double = Double(self.problem, delta)
        try:
            return phase()
        except np.linalg.LinAlgError:
            # The matrix is more indefinite than the ridge can hold, as one summed in float32 may be.
            return False

    def _offer(self, x_T: np.ndarray) -> float:
        """Keeps alpha = x / sum(x) if it is the best. Returns its gap."""
        alpha_T = np.maximum(x_T, 0.0)
        alpha_T /= alpha_T.dot(self.problem.ones_T)
        value, gap = certificate(self.problem.gram_TT, alpha_T)
        if gap < self.gap:
            self.alpha_T, self.value, self.gap = alpha_T, value, gap
        return gap

    def _pivot(self) -> bool:
        fewest, patience = 2 * len(self.problem.diag_T), PATIENCE
        while patience:
            x_T, sign_T = self._signs()
            wrong = self._wrong(sign_T)
            if wrong == 0:
                return self._refine(x_T)
            # Degenerate entries may be wrong by no more than the certificate allows, on either side, for ever.
            if wrong <= CLOSE and self._offer(x_T) <= 0.1 * self.problem.target:
                return True
            fewest, patience = (wrong, PATIENCE) if wrong < fewest else (fewest, patience - 1)
            following, most = (sign_T > 0.0).nonzero()[0], max(SMALL, len(self.free))
            self.free = self._most_promising(sign_T, most) if len(following) > 2 * most else following
        return False

    def _signs(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns x_T, and what decides the next free set: x where it is free, the slack beyond its error elsewhere."""
        self.solves += 1
        if self.single is not None and len(self.free) >= SINGLE_FROM:
            try:
                x_T, sign_T = self._sign(*self.single.minimise(self.free))
                return self._sign(*self.single.polish()) if self._wrong(sign_T) <= CLOSE else (x_T, sign_T)
            except np.linalg.LinAlgError:
                self.single = None
        return self._sign(*self.double.minimise(self.free))

    def _wrong(self, sign_T: np.ndarray) -> int:
        positive_T = sign_T > 0.0
        kept = int(np.count_nonzero(positive_T[self.free]))
        return len(self.free) + int(np.count_nonzero(positive_T)) - 2 * kept

    def _sign(self, x_T: np.ndarray, slack_T: np.ndarray, error: float) -> tuple[np.ndarray, np.ndarray]:
        sign_T = slack_T - error
        sign_T[self.free] = x_T[self.free]
        return x_T, sign_T

    def _most_promising(self, sign_T: np.ndarray, most: int) -> np.ndarray:
        """The free that stay, and `most` of the violated: freeing one gains slack^2 / (2 A_tt)."""
        gain_T = np.maximum(sign_T, 0.0) / self.problem.root_T
        gain_T[self.free] = 0.0
        chosen_T = np.zeros(len(sign_T), dtype=bool)
        chosen_T[gain_T.argpartition(-most)[-most:]] = True
        chosen_T[self.free] = sign_T[self.free] > 0
        return chosen_T.nonzero()[0]

    def _refine(self, x_T: np.ndarray) -> bool:
        """Proximal steps on a free set that is right, until the gap is well within the tolerance."""
        before = math.inf
        for _ in range(REFINEMENTS):
            gap = self._offer(x_T)
            if gap <= 0.1 * self.problem.target or gap > 0.1 * before:
                break
            before = gap
            self.double.recentre(x_T)
            x_T = self._proximal(self.free)[0]
            if x_T[x_T.argmin()] < 0:
                # A degenerate entry: positive thanks to the ridge alone.
                self.free = (x_T > 0).nonzero()[0]
                x_T = self._proximal(self.free)[0]
        return self.gap <= self.problem.target

    def _proximal(self, free: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns x_T, and the slack of the problem without the ridge: ridge * x inside `free`."""
        self.solves += 1
        x_T, slack_T, _ = self.double.minimise(free)
        slack_T[free] = 0.0
        return x_T, slack_T + self.double.ridge_T * x_T

    def _newton(self) -> bool:
        """One proximal step: minimises 1/2 x'Ax - 1'x + 1/2 x' ridge x over x >= 0, for pivoting to start from."""
        at_T, slack_T = self._proximal(self.free)
        for _ in range(NEWTON_STEPS):
            free_T = slack_T > 0
            x_T, x_slack_T = self._proximal(free_T.nonzero()[0])
            solved = bool(((x_slack_T > 0) == free_T).all())
            ridge_T = self.double.ridge_T
            step = 1.0 if solved else _line_search(at_T, slack_T, x_T - at_T, slack_T - x_slack_T, ridge_T)
            at_T = at_T + step * (x_T - at_T)
            slack_T = slack_T + step * (x_slack_T - slack_T)
            if solved:
                break
        at_T = np.maximum(at_T, 0.0)
        self.free = at_T.nonzero()[0]
        self._offer(at_T)
        return True

    def _active_set(self) -> bool:
        """Each round lowers the objective of a free set's minimum, so no free set comes twice."""
        x_T = self.alpha_T / (self.value + self.problem.shift)
        self.free = x_T.nonzero()[0]
        for _ in range(3 * len(x_T) + SMALL):
            y_T, slack_T = self._proximal(self.free)
            negative = self.free[y_T[self.free] <= 0]
            if len(negative):
                steps = x_T[negative] / (x_T[negative] - y_T[negative])
                x_T = np.maximum(x_T + steps.min() * (y_T - x_T), 0.0)
                x_T[negative[steps.argmin()]] = 0.0
                self.free = self.free[self.free != negative[steps.argmin()]]
                continue
            x_T = y_T
            slack_T[self.free] = 0.0
            if slack_T.max() <= self.problem.rounding(x_T):
                return self._refine(x_T)
            self.free = np.sort(np.append(self.free, slack_T.argmax()))
        self._offer(x_T)
        return self.gap <= self.problem.target


def _line_search(
    at_T: np.ndarray, slack_T: np.ndarray, move_T: np.ndarray, fall_T: np.ndarray, ridge_T: np.ndarray
) -> float:
    """The step in (0, 1] that minimises  1/2 x'Ax + 1/2 sum max(slack, 0)^2 / ridge  along x = at + step * move.

    The derivative is increasing and piecewise linear in the step. Newton on it, inside a bracket, ends in a few rounds.
    """
    low, high, step = 0.0, 1.0, 1.0
    linear, quadratic = float(at_T.dot(fall_T)), float(move_T.dot(fall_T))
    for _ in range(NEWTON_STEPS):
        weight_T = np.where(slack_T > step * fall_T, fall_T / ridge_T, 0.0)
        intercept, slope = linear - float(weight_T.dot(slack_T)), quadratic + float(weight_T.dot(fall_T))
        if intercept + step * slope > 0:
            high = step
        elif step == 1.0:
            break
        else:
            low = step
        root = -intercept / slope if slope > 0 else high
        following = root if low < root < high else 0.5 * (low + high)
        if abs(following - step) <= 1e-9 * step:
            break
        step = following
    return step
