"""The exact min-norm point of T gradients, from their Gram alone, with a certificate.

    min over alpha of  alpha' M alpha,   alpha >= 0,  sum(alpha) = 1,   M_ts = <g_t, g_s>

is the subproblem of MGDA (Désidéri 2012; Sener & Koltun 2018, eq. 3). It is solved in float64 on the T x T matrix, so
the width of the gradients does not matter. In the order in which a solve meets them:

1. Certificate. alpha is optimal if and only if gap(alpha) = alpha' M alpha - min_t (M alpha)_t is zero (the Frank-Wolfe
   gap, Jaggi 2013); the value is at most 2 gap above the optimum. `solve` never returns without it.
2. Closed forms: one task, two tasks, and a shortest gradient that is itself the answer (a zero row is one).
3. Reduction. With A = M + shift 11', alpha is x / sum(x) for the x that solves  min 1/2 x'Ax - 1'x  over x >= 0: no
   sum constraint is left, and optimality is the linear complementarity problem  x >= 0,  slack = 1 - Ax <= 0,
   x'slack = 0. A "free" set, the guess of the support, gives x by one Cholesky solve.
4. Proximal ridge. Duplicated or dependent gradients make A singular, so every solve has a ridge = delta diag(M) and a
   centre c:  (A + ridge) x = 1 + ridge c. At x = c the ridge cancels, hence repeating c <- x is exact (proximal point
   method, Rockafellar 1976); diag(M) makes it indifferent to the scales of the gradients.
5. Block principal pivoting (Júdice & Pires 1994) with a tiny ridge: fix the negative, free the violated, all at once,
   as long as that lowers the number of wrong signs. From the shortest gradients the set at most doubles in a round, so
   it stays near the support and, in low rank, near independence. 3 to 7 solves from nothing, 1 to 3 from the last
   support.
6. Where that stalls (many dependent gradients), one proximal step with a coarse ridge by semismooth Newton (Li, Sun &
   Toh 2018; Keerthi & DeCoste 2005): convex and differentiable, with an exact line search, so it converges from
   anywhere. It finds most of the support; pivoting tries again from there.
7. Lawson & Hanson's active set (1974; on this problem, the steps of Wolfe 1976) moves one index at a time from the
   best point so far. It is finite, and it ends the rest.

Shapes: T tasks, F the free ones among them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.linalg.lapack import dpotrf, dpotrs, dtrtrs

EPS = float(np.finfo(np.float64).eps)
TINY = 1e-11  # least ridge of the exact phases: far above a Cholesky factor's rounding, far below what alpha can feel
COARSE = 1e-3  # ridge of the Newton phase, under which dependent gradients are well conditioned
PATIENCE = 3  # rounds of pivoting without fewer wrong signs
NEWTON_STEPS = 30
REFINEMENTS = 4
SMALL = 64  # a free set may always grow to this: factoring it costs less than another round
BORDER_FROM = 200  # a smaller free set is faster to factor afresh than to border
BORDER_FRACTION = 8


@dataclass(frozen=True)
class MinNorm:
    """The min-norm point and the proof that it is one.

    Attributes:
        alpha_T: The weights, float64, non-negative, of sum 1.
        value: alpha' M alpha, the squared norm of the combined gradient, in the Gram's own units.
        gap: alpha' M alpha - min_t (M alpha)_t, same units. Zero at the optimum, whose value is at least value - 2 gap.
        support: The indices with alpha > 0, ascending; hand it to the next `solve` as its warm start.
        iterations: Linear systems solved.
        method: What found the answer: `closed_form`, `block_pivoting`, `proximal_newton` or `active_set`.
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
    """Minimises alpha' M alpha over the simplex.

    A zero row is a zero gradient and takes all the weight, with value 0: that is the optimum; mask absent tasks
    beforehand. A zero matrix gives equal weights. Where several alphas are optimal, one of them is returned, always the
    same for the same arguments.

    Args:
        gram_TT: The Gram matrix of the tasks' gradients, T x T, symmetric, positive semidefinite up to rounding.
        support: Indices where alpha was positive at the last step. Such a warm start changes the time, not the value.
        tolerance: The relative gap, gap / (trace(M) / T), up to which an answer is certified. It cannot be finer than
            the Gram: summed in float32, dependent gradients leave it indefinite by 1e-7, and 1e-6 is honest.

    Returns:
        The weights with their certificate. An answer above the tolerance (of an indefinite matrix, for instance) comes
        back with `certified=False`: look at it.

    Raises:
        ValueError: The matrix is not square, not finite, not symmetric, or has a negative diagonal.
        IndexError: `support` names a task that does not exist.
    """
    gram_TT = _checked(gram_TT)
    diag_T = gram_TT.diagonal()
    target = tolerance * float(diag_T.sum()) / len(diag_T)
    alpha_T = _closed_form(gram_TT, diag_T)
    if alpha_T is not None:
        return _result(alpha_T, *_certificate(gram_TT, alpha_T), 0, "closed_form", target)
    # Ten tolerances of ridge leave a gap that one proximal step takes below the tolerance.
    search = _Search(gram_TT, diag_T, target, min(max(TINY, 10 * tolerance), COARSE))
    method = search.run(_first_guess(diag_T, support))
    return _result(search.alpha_T, search.value, search.gap, search.system.solves, method, target)


def _checked(gram_TT: np.ndarray) -> np.ndarray:
    gram_TT = np.ascontiguousarray(gram_TT, dtype=np.float64)
    if gram_TT.ndim != 2 or gram_TT.shape[0] != gram_TT.shape[1] or len(gram_TT) == 0:
        raise ValueError(f"expected a square Gram matrix, T x T with T >= 1; found shape {gram_TT.shape}")
    # Two products see every entry, at a tenth of the cost of a comparison with the transpose, which walks against the
    # cache. A NaN or an infinity anywhere makes the difference NaN, which no comparison lets pass.
    ones_T = np.ones(len(gram_TT))
    with np.errstate(invalid="ignore"):
        difference = abs(gram_TT.dot(ones_T) - ones_T.dot(gram_TT)).max()
    diag_T = gram_TT.diagonal()
    if not difference <= 1e-6 * len(gram_TT) * diag_T.max():
        if np.isfinite(gram_TT).all():
            raise ValueError("expected a symmetric Gram matrix; its row sums and its column sums differ")
        raise ValueError("expected a finite Gram matrix; found NaN or infinite entries")
    if diag_T.min() < 0:
        raise ValueError(f"expected squared norms on the Gram's diagonal; found {diag_T.min()}")
    return gram_TT


def _closed_form(gram_TT: np.ndarray, diag_T: np.ndarray) -> np.ndarray | None:
    T = len(diag_T)
    shortest = diag_T.argmin()
    if gram_TT[shortest].min() >= diag_T[shortest]:
        return _one_hot(T, shortest) if diag_T.max() > 0 else np.full(T, 1 / T)
    if T == 2:
        # With the shortest ruled out, both are positive: theory's clip to [0, 1] cannot happen.
        alpha_T = diag_T[::-1] - gram_TT[0, 1]
        return alpha_T / alpha_T.sum()
    return None


def _first_guess(diag_T: np.ndarray, support: np.ndarray | None) -> np.ndarray:
    T = len(diag_T)
    if support is not None and len(support) > 0:
        chosen_T = np.zeros(T, dtype=bool)
        chosen_T[support] = True
        return chosen_T.nonzero()[0]
    if T <= 16:
        return np.arange(T)
    # Freeing one more gradient gains slack^2 / (2 A_tt), and at x = 0 every slack is 1: the shortest gain most.
    return np.sort(diag_T.argsort(kind="stable")[: max(8, T // 8)])


def _one_hot(T: int, index: np.intp) -> np.ndarray:
    alpha_T = np.zeros(T)
    alpha_T[index] = 1.0
    return alpha_T


def _certificate(gram_TT: np.ndarray, alpha_T: np.ndarray) -> tuple[float, float]:
    product_T = gram_TT.dot(alpha_T)
    value = float(alpha_T.dot(product_T))
    return value, value - float(product_T.min())


def _result(alpha_T: np.ndarray, value: float, gap: float, iterations: int, method: str, target: float) -> MinNorm:
    # Rounding can take either a hair below zero.
    value, gap = max(0.0, value), max(0.0, gap)
    return MinNorm(alpha_T, value, gap, alpha_T.nonzero()[0], iterations, method, certified=gap <= target)


class _System:
    """Solves blocks of (A + ridge) x = 1 + ridge c. A Cholesky factor serves while the free set changes little."""

    def __init__(self, gram_TT: np.ndarray, diag_T: np.ndarray):
        self.solves = 0
        self.diag_T = diag_T
        # Any positive shift is right. One of the size of the answer's value neither drowns the short gradients in
        # rounding nor vanishes beside the long ones.
        self.shift = max(float(diag_T.min()), 1e-10 * float(diag_T.sum()) / len(diag_T))
        self.matrix_TT = gram_TT + self.shift
        self.delta = 0.0
        self.forget()

    def regularise(self, delta: float) -> None:
        if delta != self.delta:
            self.delta, self.ridge_T = delta, delta * self.diag_T
            self.matrix_TT.flat[:: len(self.diag_T) + 1] = self.diag_T + self.shift + self.ridge_T
            self.forget()

    def forget(self) -> None:
        self.factored = np.arange(0)

    def fresh(self, free: np.ndarray) -> bool:
        """Whether the factor in hand is that of exactly this free set."""
        base = self.factored
        return free is base or (len(free) == len(base) and bool((free == base).all()))

    def minimise(self, free: np.ndarray, centre_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns x_T, zero outside `free`, and slack_T = 1 + ridge c - A x, which is ridge * x on `free`."""
        self.solves += 1
        rhs_T = 1.0 + self.ridge_T * centre_T
        x_T = np.zeros(len(rhs_T))
        if not self._bordered(free, rhs_T, x_T):
            if not self.fresh(free):
                self._factor(free)
            x_T[free] = dpotrs(self.factor_FF, rhs_T[free], lower=1)[0]
        return x_T, rhs_T - self.matrix_TT.dot(x_T) + self.ridge_T * x_T

    def _factor(self, free: np.ndarray) -> None:
        if len(free) == 0:
            raise np.linalg.LinAlgError("no positive entry is left: the matrix is indefinite")
        if len(free) == len(self.matrix_TT):
            block_FF = self.matrix_TT.copy()
        else:
            block_FF = self.matrix_TT.take(free, 0).take(free, 1)
        # A symmetric block's transpose is the same block in the column order that LAPACK can overwrite in place.
        self.factor_FF, info = dpotrf(block_FF.T, lower=1, clean=0, overwrite_a=1)
        self.factored = free
        if info:
            self.forget()
            raise np.linalg.LinAlgError("the regularised Gram is not positive definite")

    def _bordered(self, free: np.ndarray, rhs_T: np.ndarray, x_T: np.ndarray) -> bool:
        """Fills x_T for a free set near the factored one, by the Schur complement of the changes. False if not near."""
        base = self.factored
        most = len(base) // BORDER_FRACTION
        if len(base) < BORDER_FROM or abs(len(base) - len(free)) > most:
            return False
        fixed = np.setdiff1d(base, free, assume_unique=True)
        freed = np.setdiff1d(free, base, assume_unique=True)
        K, changes = len(freed), len(freed) + len(fixed)
        if not 0 < changes <= most:
            return False
        # The base block is bordered by the rows of the freed, and by rows of the identity that hold the fixed at zero.
        border = np.zeros((len(base), changes), order="F")
        border[:, :K] = self.matrix_TT[np.ix_(freed, base)].T
        border[np.searchsorted(base, fixed), np.arange(K, changes)] = 1.0
        half, _ = dtrtrs(self.factor_FF, border, lower=1, overwrite_b=1)
        half_rhs, _ = dtrtrs(self.factor_FF, rhs_T[base], lower=1)
        schur = -(half.T @ half)
        schur[:K, :K] += self.matrix_TT[np.ix_(freed, freed)]
        reduced = -(half.T @ half_rhs)
        reduced[:K] += rhs_T[freed]
        ends = np.linalg.solve(schur, reduced)
        x_T[base], _ = dtrtrs(self.factor_FF, half_rhs - half @ ends, lower=1, trans=1)
        x_T[fixed] = 0.0
        x_T[freed] = ends[:K]
        return True


class _Search:
    """The phases of one solve. `alpha_T`, `value` and `gap` are of the best point that any phase offered."""

    def __init__(self, gram_TT: np.ndarray, diag_T: np.ndarray, target: float, tiny: float):
        self.gram_TT, self.root_T, self.target, self.tiny = gram_TT, np.sqrt(diag_T), target, tiny
        self.longest = float(self.root_T.max())
        self.system = _System(gram_TT, diag_T)
        self.centre_T = np.zeros(len(diag_T))
        self.gap = math.inf

    def run(self, guess: np.ndarray) -> str:
        self.free = guess
        if self.succeeds(self.tiny, self.pivot):
            return "block_pivoting"
        self.offer(_one_hot(len(self.root_T), self.root_T.argmin()))
        if self.succeeds(COARSE, self.newton) and self.succeeds(self.tiny, self.pivot):
            return "proximal_newton"
        self.succeeds(self.tiny, self.active_set)
        return "active_set"

    def succeeds(self, delta: float, phase: Callable[[], bool]) -> bool:
        self.system.regularise(delta)
        try:
            return phase()
        except np.linalg.LinAlgError:
            # The matrix is more indefinite than the ridge can hold, as one summed in float32 may be.
            return False

    def offer(self, x_T: np.ndarray) -> float:
        """Keeps alpha = x / sum(x) if it is the best. Returns its gap."""
        alpha_T = np.maximum(x_T, 0.0)
        alpha_T /= alpha_T.sum()
        value, gap = _certificate(self.gram_TT, alpha_T)
        if gap < self.gap:
            self.alpha_T, self.value, self.gap = alpha_T, value, gap
        return gap

    def rounding(self, x_T: np.ndarray) -> float:
        """The error to expect in an entry of M x, for x >= 0: |M_ts| is at most the product of the two norms."""
        return 4 * EPS * self.longest * float(self.root_T.dot(x_T))

    def pivot(self) -> bool:
        fewest, patience = 2 * len(self.root_T), PATIENCE
        while patience:
            x_T, slack_T = self.system.minimise(self.free, self.centre_T)
            positive_T = x_T > 0
            violated = ((x_T == 0) & (slack_T > self.rounding(abs(x_T)))).nonzero()[0]
            wrong = len(self.free) - int(positive_T.sum()) + len(violated)
            if wrong == 0:
                return self.refine(x_T)
            fewest, patience = (wrong, PATIENCE) if wrong < fewest else (fewest, patience - 1)
            most = max(SMALL, len(self.free))
            if len(violated) > most:
                gain = slack_T[violated] / self.root_T[violated]
                violated = violated[gain.argpartition(-most)[-most:]]
            positive_T[violated] = True
            self.free = positive_T.nonzero()[0]
        return False

    def refine(self, x_T: np.ndarray) -> bool:
        """Proximal steps on a free set that is right, until the gap is well within the tolerance."""
        before = math.inf
        for _ in range(REFINEMENTS):
            gap = self.offer(x_T)
            if gap <= 0.1 * self.target:
                break
            if gap > 0.1 * before:
                if self.gap <= self.target or self.system.fresh(self.free):
                    break
                # A factor bordered too often loses digits where the gradients are dependent.
                self.system.forget()
            before, centre_T = gap, x_T
            x_T, _ = self.system.minimise(self.free, centre_T)
            if x_T.min() < 0:
                # A degenerate entry: positive thanks to the ridge alone.
                self.free = (x_T > 0).nonzero()[0]
                x_T, _ = self.system.minimise(self.free, centre_T)
        return self.gap <= self.target

    def newton(self) -> bool:
        """One proximal step: minimises 1/2 x'Ax - 1'x + 1/2 (x - c)' ridge (x - c) over x >= 0, then c <- x."""
        at_T, slack_T = self.system.minimise(self.free, self.centre_T)
        for _ in range(NEWTON_STEPS):
            free_T = slack_T > 0
            x_T, x_slack_T = self.system.minimise(free_T.nonzero()[0], self.centre_T)
            solved = bool(((x_slack_T > 0) == free_T).all())
            step = 1.0 if solved else _line_search(at_T, slack_T, x_T - at_T, slack_T - x_slack_T, self.system.ridge_T)
            at_T = at_T + step * (x_T - at_T)
            slack_T = slack_T + step * (x_slack_T - slack_T)
            if solved:
                break
        self.centre_T = np.maximum(at_T, 0.0)
        self.free = self.centre_T.nonzero()[0]
        self.offer(self.centre_T)
        return True

    def active_set(self) -> bool:
        """Each round lowers the objective of a free set's minimum, so no free set comes twice."""
        self.centre_T = np.zeros(len(self.root_T))
        x_T = self.alpha_T / (self.value + self.system.shift)
        self.free = x_T.nonzero()[0]
        for _ in range(3 * len(x_T) + SMALL):
            y_T, slack_T = self.system.minimise(self.free, self.centre_T)
            negative = self.free[y_T[self.free] <= 0]
            if len(negative):
                steps = x_T[negative] / (x_T[negative] - y_T[negative])
                x_T = np.maximum(x_T + steps.min() * (y_T - x_T), 0.0)
                x_T[negative[steps.argmin()]] = 0.0
                self.free = self.free[self.free != negative[steps.argmin()]]
                continue
            x_T = y_T
            slack_T[self.free] = 0.0
            if slack_T.max() <= self.rounding(x_T):
                return self.refine(x_T)
            self.free = np.sort(np.append(self.free, slack_T.argmax()))
        self.offer(x_T)
        return self.gap <= self.target


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
