"""The search for the free set whose solution is complementary, in three phases, the fastest first.

1. Block principal pivoting (Júdice & Pires 1994) with a tiny ridge: fix all negative entries and free all violated ones
   at once, as long as that lowers the number of wrong signs. The set at most doubles per round, so it stays near the
   support and, at low rank, nearly independent. It takes 1 to 4 solves from the guess, 1 to 3 from the last support.
2. If that stalls (many dependent gradients), one proximal step with a coarse ridge by semismooth Newton (Li, Sun & Toh
   2018; Keerthi & DeCoste 2005). The objective is convex and differentiable and the line search exact, so it converges
   from any start. It finds most of the support, and pivoting tries again from there.
3. The active-set method of Lawson & Hanson (1974; on this problem, the steps of Wolfe 1976) moves one index at a time
   from the best point so far. It always terminates.

Shapes: T tasks, F the free ones among them.
"""

import math
from collections.abc import Callable

import numpy as np

from paretrain.minnorm.double import Double
from paretrain.minnorm.guess import first_guess
from paretrain.minnorm.problem import Problem, certificate
from paretrain.minnorm.single import Single

TINY = 1e-11  # smallest ridge for thousands of tasks: above the rounding of a Cholesky factor, too small to move alpha
COARSE = 1e-3  # ridge of the Newton phase, with which dependent gradients are well conditioned
PATIENCE = 6  # rounds of pivoting without a lower number of wrong signs
CLOSE = 4  # with at most this many wrong signs, compute the certificate or a more accurate solution
NEWTON_STEPS = 30
REFINEMENTS = 4
SINGLE_FROM = 512  # from this many free gradients, a float32 factor with refinement is faster than a float64 one
SMALL = 64  # a free set may always grow to this size: factoring it costs less than another round


def one_hot(T: int, index: np.intp) -> np.ndarray:
    """Return the weights that select one task."""
    alpha_T = np.zeros(T)
    alpha_T[index] = 1.0
    return alpha_T


class Search:
    """The phases of one solve. `alpha_T`, `value` and `gap` describe the best point found so far."""

    def __init__(self, problem: Problem, tolerance: float):
        self.problem = problem
        # A ridge of ten tolerances leaves a gap that one proximal step reduces below the tolerance.
        self.tiny = min(max(TINY, 10 * tolerance), COARSE)
        self.single: Single | None = None
        self.gap, self.solves = math.inf, 0

    def run(self, support: np.ndarray | None) -> str:
        """Run the phases, from the support of the last step if there is one. Return the name of the last phase."""
        problem = self.problem
        self.free = first_guess(problem) if support is None else support
        if len(self.free) >= SINGLE_FROM:
            self.single = Single(problem)
        # The rounding of a factor grows with the number of tasks. With few tasks and an exact Gram matrix, a ridge this
        # light is enough, and the first solution needs no proximal step.
        light = TINY * min(1.0, len(problem.diag_T) / 1000) if self.tiny == TINY else self.tiny
        if self._succeeds(self._pivot, light):
            return "block_pivoting"
        if self.single is not None:
            # If many gradients are dependent, the signs found in float32 may be rounding.
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
            # The matrix is more indefinite than the ridge compensates, as one summed in float32 may be.
            return False

    def _offer(self, x_T: np.ndarray) -> float:
        """Keep alpha = x / sum(x) if it is the best so far. Return its gap."""
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
            # Degenerate entries may keep changing sign within what the certificate allows.
            if wrong <= CLOSE and self._offer(x_T) <= 0.1 * self.problem.target:
                return True
            fewest, patience = (wrong, PATIENCE) if wrong < fewest else (fewest, patience - 1)
            following, most = (sign_T > 0.0).nonzero()[0], max(SMALL, len(self.free))
            self.free = self._most_promising(sign_T, most) if len(following) > 2 * most else following
        return False

    def _signs(self) -> tuple[np.ndarray, np.ndarray]:
        """Return x_T and the signs that decide the next free set: x inside the free set, slack minus error outside."""
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
        """Return the free entries that stay, and `most` of the violated: freeing one gains slack^2 / (2 A_tt)."""
        gain_T = np.maximum(sign_T, 0.0) / self.problem.root_T
        gain_T[self.free] = 0.0
        chosen_T = np.zeros(len(sign_T), dtype=bool)
        chosen_T[gain_T.argpartition(-most)[-most:]] = True
        chosen_T[self.free] = sign_T[self.free] > 0
        return chosen_T.nonzero()[0]

    def _refine(self, x_T: np.ndarray) -> bool:
        """Take proximal steps on a correct free set until the gap is well within the tolerance."""
        before = math.inf
        for _ in range(REFINEMENTS):
            gap = self._offer(x_T)
            if gap <= 0.1 * self.problem.target or gap > 0.1 * before:
                break
            before = gap
            self.double.recentre(x_T)
            x_T = self._proximal(self.free)[0]
            if x_T[x_T.argmin()] < 0:
                # A degenerate entry was positive only because of the ridge.
                self.free = (x_T > 0).nonzero()[0]
                x_T = self._proximal(self.free)[0]
        return self.gap <= self.problem.target

    def _proximal(self, free: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return x_T and the slack of the problem without the ridge, which is ridge * x inside `free`."""
        self.solves += 1
        x_T, slack_T, _ = self.double.minimise(free)
        slack_T[free] = 0.0
        return x_T, slack_T + self.double.ridge_T * x_T

    def _newton(self) -> bool:
        """Minimise 1/2 x'Ax - 1'x + 1/2 x' ridge x over x >= 0, one proximal step, as a start for pivoting."""
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
        """Change one index at a time. Each round lowers the minimum over the free set, so no free set repeats."""
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
    """Return the step in (0, 1] that minimises  1/2 x'Ax + 1/2 sum max(slack, 0)^2 / ridge  at x = at + step * move.

    The derivative is increasing and piecewise linear in the step, so Newton's method inside a bracket takes few rounds.
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
