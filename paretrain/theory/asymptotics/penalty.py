"""The penalty between tasks, Q of equations 2 and 3, in its usual parametrisations."""

import numpy as np

from paretrain.theory.arrays import Array


def coupling(num_tasks: int, common: float, own: float) -> Array:
    """Return Q (T x T) of the penalty common/2 |w_0|² + own/2 Σ|w_t - w_0|², minimised over w_0 (equation 3)."""
    if not (common > 0 and own > 0):
        raise ValueError(f"common is {common}, own {own}; expected both > 0")
    shared = own**2 / (common + num_tasks * own)
    return own * np.eye(num_tasks) - shared * np.ones((num_tasks, num_tasks))


def mean_regularised(num_tasks: int, to_mean: float, to_zero: float) -> tuple[float, float]:
    """Return (common, own) of the same Q as to_mean/2 Σ|w_t - w̄|² + to_zero/2 Σ|w_t|², w̄ the mean of the w_t."""
    own = to_mean + to_zero
    return num_tasks * to_zero * own / to_mean, own


def common_and_own(penalty_TT: Array) -> tuple[float, float]:
    """Return (common, own) of a Q that `coupling` made; raise ValueError if it has another form."""
    num_tasks = len(penalty_TT)
    if num_tasks < 2:
        raise ValueError("one task does not tell common from own")
    smallest = float(penalty_TT.sum() / num_tasks)
    own = float((np.trace(penalty_TT) - smallest) / (num_tasks - 1))
    if not own > smallest > 0:
        raise ValueError(f"the eigenvalues are {smallest:g} and {own:g}; expected 0 < the first < the second")
    common = num_tasks * smallest * own / (own - smallest)
    if not np.allclose(coupling(num_tasks, common, own), penalty_TT, rtol=1e-9, atol=1e-12 * own):
        raise ValueError("the tasks do not all have the same penalty with each other")
    return common, own
