"""The min-norm point of thousands of gradients, from products of their Gram matrix with vectors: nothing is factored.

1. Projected gradient steps on the simplex, in the metric diag(M) and of the length of Barzilai & Borwein (1988), find
   most of the support.
2. Newton steps: conjugate gradients, with diag(M) as preconditioner, minimise over the weights that are positive or
   would lower the value if they were. They stop when the residual is a third of what it was. The result is projected on
   the simplex and the step cut by an exact line search (Bertsekas 1982; Moré & Toraldo 1991). Where that gains nothing,
   a projected gradient step does.

Every step lowers the value. All moves have the sum zero, so that what all gradients have in common cancels out:
strongly correlated gradients are no harder than others. The matrix is only multiplied, so it need not exist: T
gradients of rank R cost T R operations a product in place of T² R for the matrix, and T³ for a factor of it. The
products may be rough, as those in float32 are: the certificate is computed from an exact one, and where that finds that
rough products gain no more, the others are exact, too.

It keeps no memory from one solve to the next, so a run that is resumed finds the same weights.

Shapes: T tasks.
"""

import math
from typing import NamedTuple, Protocol

import numpy as np

FIRST_STEPS = 6
"""Projected gradient steps before the first Newton step."""
REDUCTION = 0.3
"""Residual of a Newton step's system, relative to the first, in the norm of the preconditioner."""
MOST_INNER = 30
LEAST_STEP = 0.02
"""Where the line search cuts a Newton step to less than this, a gradient step follows."""
MOST_PRODUCTS = 600
"""Hard problems end after this many products, whatever they have reached; ordinary ones take 15 to 80."""
ROUGH_PRODUCTS = 32
"""An exact product corrects the slopes after this many rough ones."""
ROUGH_GAIN = 0.1
"""Rough products go on as long as they bring the gap to this fraction between two exact products."""


OF_VALUE = 1e-4
"""A gap of this fraction of the value leaves the combined gradient within a hundredth of its length."""
SMALLEST = 1e-12
"""The gap, relative to the mean of the diagonal, that is small enough for any value, such as 0."""


class Products(Protocol):
    """A Gram matrix M, of positive diagonal, that can be multiplied with vectors."""

    def diagonal(self) -> np.ndarray:
        """Return the diagonal, float64."""
        ...

    def exact(self, x_T: np.ndarray) -> np.ndarray:
        """Return M x in float64."""
        ...

    def rough(self, x_T: np.ndarray) -> np.ndarray:
        """Return M x to about seven digits, or exactly."""
        ...


class Found(NamedTuple):
    """The best point found.

    Attributes:
        alpha_T: on the simplex.
        slopes_T: M alpha, exact.
        products: the number of products taken.
    """

    alpha_T: np.ndarray
    slopes_T: np.ndarray
    products: int


def descend(gram: Products, tolerance: float, most: int = MOST_PRODUCTS) -> Found:
    """Minimise alpha' M alpha over the simplex until the gap (see `minnorm`) is `small_enough`, or `most` is reached.

    The value, alpha' M alpha, and the gap follow from the answer's `slopes_T`.
    """
    return _Descent(gram, tolerance, most).run()


def small_enough(gap: float, value: float, scale: float, tolerance: float) -> bool:
    """Return whether a gap is within the tolerance, relative to `scale`, the mean of the diagonal.

    Where the value is far below the scale, as with gradients of very different lengths, such a gap could be as large as
    the value. So it has to be small beside that, too.
    """
    return gap <= max(min(tolerance * scale, OF_VALUE * value), SMALLEST * scale)


class _Descent:
    """The state: a point, its slopes M alpha as far as they are known, and the products taken."""

    def __init__(self, gram: Products, tolerance: float, most: int):
        self.gram, self.tolerance, self.most = gram, tolerance, most
        self.diag_T = gram.diagonal()
        self.scale = float(self.diag_T.mean())
        self.inverse_T = 1 / self.diag_T
        self.products, self.length = 0, 1.0
        self.is_rough, self.corrected = True, 0
        self.alpha_T = self.inverse_T / self.inverse_T.sum()
        self.slopes_T = self._times(self.alpha_T)
        self.best, self.least = Found(self.alpha_T, self.slopes_T, self.products), math.inf

    def run(self) -> Found:
        for _ in range(FIRST_STEPS):
            if self._ends():
                return self.best
            self._gradient_step()
        while not self._ends():
            self._newton_step()
        return self.best._replace(products=self.products)

    def _ends(self) -> bool:
        """Return whether the target or the limit is reached, by an exact product."""
        is_last = self.products + 1 >= self.most
        is_due = self.is_rough and self.products - self.corrected > ROUGH_PRODUCTS
        if not is_last and not is_due and not self._is_close():
            return False
        self.slopes_T, self.corrected = self._exact(self.alpha_T), self.products
        gap = _gap(self.alpha_T, self.slopes_T)
        self.is_rough = self.is_rough and gap <= ROUGH_GAIN * self.least
        if gap < self.least:
            self.best, self.least = Found(self.alpha_T, self.slopes_T, self.products), gap
        return is_last or self._is_close()

    def _is_close(self) -> bool:
        value = float(self.alpha_T.dot(self.slopes_T))
        return small_enough(_gap(self.alpha_T, self.slopes_T), value, self.scale, self.tolerance)

    def _exact(self, x_T: np.ndarray) -> np.ndarray:
        self.products += 1
        return self.gram.exact(x_T)

    def _times(self, x_T: np.ndarray) -> np.ndarray:
        self.products += 1
        return self.gram.rough(x_T) if self.is_rough else self.gram.exact(x_T)

    def _gradient_step(self) -> None:
        # Slopes are taken relative to their mean wherever only their differences count: they may differ by little.
        fall_T = self.slopes_T - self.alpha_T.dot(self.slopes_T)
        self._go(project(self.alpha_T - self.length * fall_T * self.inverse_T, self.diag_T))

    def _newton_step(self) -> None:
        alpha_T = self.alpha_T
        inside_T = alpha_T > 0
        level = _mean(self.slopes_T, np.where(inside_T, self.inverse_T, 0.0))
        weight_T = np.where(inside_T | (self.slopes_T < level), self.inverse_T, 0.0)
        move_T, change_T = self._solve(weight_T)
        if (alpha_T + move_T).min() >= 0:
            self._set(alpha_T + move_T, self.slopes_T + change_T)
        elif self._go(project(alpha_T + move_T, self.diag_T)) < LEAST_STEP:
            self._gradient_step()

    def _solve(self, weight_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the move, of sum zero, to the minimum over the entries of positive weight, nearly; and M times it."""
        residual_T = _centred(-self.slopes_T, weight_T)
        step_T = weight_T * residual_T
        before = float(residual_T.dot(step_T))
        enough = REDUCTION**2 * before
        move_T, change_T, direction_T = np.zeros_like(step_T), np.zeros_like(step_T), step_T
        for _ in range(MOST_INNER):
            if self.products + 2 >= self.most:
                break
            product_T = self._times(direction_T)
            curvature = float(direction_T.dot(product_T))
            if curvature <= 1e-14 * float(direction_T.dot(self.diag_T * direction_T)):
                break  # The gradients are dependent in this direction, up to rounding.
            length = before / curvature
            move_T, change_T = move_T + length * direction_T, change_T + length * product_T
            residual_T = _centred(residual_T - length * product_T, weight_T)
            step_T = weight_T * residual_T
            after = float(residual_T.dot(step_T))
            if after <= enough:
                break
            direction_T, before = step_T + after / before * direction_T, after
        return move_T, change_T

    def _go(self, goal_T: np.ndarray) -> float:
        """Go to the minimum on the way to `goal_T`; return the fraction of the way."""
        move_T = goal_T - self.alpha_T
        fall = -float((self.slopes_T - self.alpha_T.dot(self.slopes_T)).dot(move_T))
        if not fall > 0:
            return 0.0
        change_T = self._times(move_T)
        curvature = float(move_T.dot(change_T))
        fraction = 1.0
        if curvature > 0:
            self.length = float(move_T.dot(self.diag_T * move_T)) / curvature
            fraction = min(1.0, fall / curvature)
        self._set(self.alpha_T + fraction * move_T, self.slopes_T + fraction * change_T)
        return fraction

    def _set(self, alpha_T: np.ndarray, slopes_T: np.ndarray) -> None:
        alpha_T = np.maximum(alpha_T, 0.0)  # Rounding may leave -1e-20 where a step ends at zero.
        total = float(alpha_T.sum())
        self.alpha_T, self.slopes_T = alpha_T / total, slopes_T / total


def project(point_T: np.ndarray, diag_T: np.ndarray) -> np.ndarray:
    """Return the nearest point of the simplex: point - level / diag where that is positive (Duchi et al. 2008)."""
    height_T = point_T * diag_T
    order_T = (-height_T).argsort()
    level_T = (point_T[order_T].cumsum() - 1) / (1 / diag_T[order_T]).cumsum()
    level = level_T[np.count_nonzero(height_T[order_T] > level_T) - 1]
    nearest_T: np.ndarray = np.maximum(point_T - level / diag_T, 0.0)
    return nearest_T


def _gap(alpha_T: np.ndarray, slopes_T: np.ndarray) -> float:
    return float(alpha_T.dot(slopes_T)) - float(slopes_T.min())


def _mean(values_T: np.ndarray, weight_T: np.ndarray) -> float:
    return float(values_T.dot(weight_T)) / float(weight_T.sum())


def _centred(values_T: np.ndarray, weight_T: np.ndarray) -> np.ndarray:
    """Subtract the weighted mean; return zeros where the weight is zero."""
    return np.where(weight_T > 0, values_T - _mean(values_T, weight_T), 0.0)
