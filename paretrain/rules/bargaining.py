"""Rules that share the gains among the tasks: Nash-MTL and its generalisation FairGrad.

Shapes: A active tasks.
"""

import numpy as np

from paretrain.rules.rule import Stateless, Weights, in_units_of_the_mean, share

RIDGE = 1e-7
"""What is added to the cosines' diagonal. Without it no solution exists where 0 is a mean of the gradients."""
CONVERGED = 1e-6
"""The relative residual of the equation below which a solution is certified."""
SURE_STEP = 0.01
"""A relative step of this size is taken whole: Newton's method converges from here, and rounding hides the fall."""
LAST_STEP = 1e-7
"""Newton's method squares the error, so no further step is needed after one of this relative size."""
MAX_STEPS = 200


class FairGrad(Stateless):
    """FairGrad (Ban & Ji 2024, arXiv 2402.15638, Algorithm 1): the weights w > 0 with  G w = w^(-1/alpha).

    The step then maximises Σ_t u(g_t · d) over directions d of one length, where u is the alpha-fair utility,
    u(x) = x^(1 - alpha) / (1 - alpha). alpha = 1 is Nash-MTL; a larger alpha gives more to the task that gains least.

    The equation is that of the minimum of a convex function, ½ wᵀGw - Σ_t ∫ w_t^(-1/alpha), which Newton's method
    finds; the authors use a least-squares solver. Two differences from the paper: lengths are in units of the root mean
    squared gradient norm, and w is scaled to sum 1, so that a learning rate carries over from other rules.

    Args:
        alpha: how strongly the step favours the task that gains least.

    Raises:
        ValueError: an alpha outside [0.5, 10].
    """

    def __init__(self, alpha: float = 2.0) -> None:
        if not 0.5 <= alpha <= 10:
            raise ValueError(f"alpha must be between 0.5 and 10, found {alpha}")
        self._power = 1 / alpha

    def __call__(self, gram_AA: np.ndarray, losses_A: np.ndarray, tasks_A: np.ndarray) -> Weights:
        """Solve; `certified` says whether the equation holds up to `CONVERGED`. A zero gradient has weight 0."""
        lengths_A = np.sqrt(in_units_of_the_mean(gram_AA).diagonal())
        moving = np.flatnonzero(lengths_A)
        lengths_M = lengths_A[moving]
        cosines_MM = in_units_of_the_mean(gram_AA)[np.ix_(moving, moving)] / np.outer(lengths_M, lengths_M)
        # In v = |g| w the equation is  C v = |g|^(p - 1) v^-p  with the cosines C: no scale but that on the right.
        v_M, certified = _solve(cosines_MM, lengths_M ** (self._power - 1), self._power)
        alpha_A = np.zeros(len(tasks_A))
        alpha_A[moving] = v_M / lengths_M
        return Weights(share(alpha_A), certified)


class Nash(FairGrad):
    """Nash-MTL (Navon et al. 2022, arXiv 2202.01017, claim 3.1): the a > 0 with  G a = 1/a.

    That is the bargaining solution of tasks whose utility is their gain g_t · d; it does not change when a loss is
    multiplied by a constant. It is `FairGrad` with alpha = 1. The authors solve a sequence of convex problems, up to 20
    of them, and may stop before the solution. Scaled to sum 1.
    """

    def __init__(self) -> None:
        super().__init__(alpha=1)


def _solve(cosines_MM: np.ndarray, right_M: np.ndarray, power: float) -> tuple[np.ndarray, bool]:
    """Return the v > 0 with  C v = right v^-power,  and whether it is found; damped Newton, in relative steps."""
    if not len(right_M):
        return right_M, True
    matrix_MM = cosines_MM + (RIDGE + max(0.0, -np.linalg.eigvalsh(cosines_MM)[0])) * np.eye(len(right_M))
    v_M = _best_scale(matrix_MM, right_M, power, right_M ** (1 / (1 + power)))
    for _ in range(MAX_STEPS):
        pull_M = right_M * v_M ** (1 - power)
        slope_M = v_M * (matrix_MM @ v_M) - pull_M
        step_M = -np.linalg.solve(v_M[:, None] * matrix_MM * v_M + np.diag(power * pull_M), slope_M)
        size = np.abs(step_M).max()
        if size > SURE_STEP / (1 + power):
            step_M *= _length(matrix_MM, right_M, power, v_M, step_M, float(slope_M @ step_M))
        v_M = _best_scale(matrix_MM, right_M, power, v_M * (1 + step_M))
        if size <= LAST_STEP:
            break
    residual_M = v_M**power * (matrix_MM @ v_M) / right_M - 1
    return v_M, bool(np.abs(residual_M).max() <= CONVERGED)


def _length(
    matrix_MM: np.ndarray, right_M: np.ndarray, power: float, v_M: np.ndarray, step_M: np.ndarray, slope: float
) -> float:
    """Return how much of a step to take: v stays positive, and the value falls."""
    length = min(1.0, 0.95 / max(-float(step_M.min()), 1e-300))
    value = _value(matrix_MM, right_M, power, v_M)
    while length > 1e-10 and not (
        _value(matrix_MM, right_M, power, v_M * (1 + length * step_M)) <= value + 1e-4 * length * slope
    ):
        length /= 2
    return length


def _value(matrix_MM: np.ndarray, right_M: np.ndarray, power: float, v_M: np.ndarray) -> float:
    utility_M = np.log(v_M) if power == 1 else v_M ** (1 - power) / (1 - power)
    return float(v_M @ matrix_MM @ v_M / 2 - right_M @ utility_M)


def _best_scale(matrix_MM: np.ndarray, right_M: np.ndarray, power: float, v_M: np.ndarray) -> np.ndarray:
    """Return the multiple of v of the smallest value."""
    scale = float((right_M @ v_M ** (1 - power)) / (v_M @ matrix_MM @ v_M)) ** (1 / (1 + power))
    best_M: np.ndarray = scale * v_M
    return best_M
