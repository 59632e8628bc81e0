"""Claim (i): each of the coupled tasks behaves as a single task with additional regularisation (equation 10).

Shapes: T tasks.
"""

from dataclasses import dataclass

import numpy as np

from paretrain.theory.arrays import Array
from paretrain.theory.asymptotics.population import Population
from paretrain.theory.asymptotics.resolvent import resolvent
from paretrain.theory.asymptotics.ridge import RidgeLimit


@dataclass(frozen=True)
class SingleTask:
    """Hold ridge regression around a target that has, in the limit, the law of task t of the coupled problem.

    The problem is min a/(2n) |y - Xw|² + strength/2 |w - m|², with the target m = Σ_s mixing_T[s] (β_s + ν_s),
    ν_s ~ N(0, (test_T[s]/n_s) I); `mixing_T` is zero for the task itself.
    """

    strength: float
    mixing_T: Array


def equivalent_single_tasks(penalty_TT: Array, limit: RidgeLimit) -> list[SingleTask]:
    """Return the equivalent single task of each of T coupled tasks over white features."""
    num_tasks = len(penalty_TT)
    tasks = []
    for task in range(num_tasks):
        others = np.arange(num_tasks) != task
        strength = 1 / limit.green_JTT[0, task, task] - limit.kappa_T[task]
        block_OO = penalty_TT[np.ix_(others, others)] + np.diag(limit.kappa_T[others])
        mixing_T = np.zeros(num_tasks)
        mixing_T[others] = -np.linalg.solve(block_OO, penalty_TT[others, task]) * limit.kappa_T[others] / strength
        tasks.append(SingleTask(float(strength), mixing_T))
    return tasks


def single_task_errors(
    tasks: list[SingleTask], population: Population, limit: RidgeLimit, ratio_T: Array, weights_T: Array | None = None
) -> Array:
    """Return the test errors of the equivalent single tasks, from the formula of one task alone.

    With d = |β_t - m|², κ and g solved for one task of penalty α: r = ((g α)² d + σ²)/(1 - γ κ² g²).
    """
    weights_T = np.ones_like(ratio_T) if weights_T is None else weights_T
    errors = []
    for task, single in enumerate(tasks):
        offset_T = -single.mixing_T
        offset_T[task] = 1
        distance = offset_T @ population.gram_JTT[0] @ offset_T
        distance += single.mixing_T**2 @ (ratio_T * limit.test_T)  # |ν_s|² -> p r_s/n_s
        alone = resolvent(
            np.array([[single.strength]]),
            ratio_T[[task]],
            weights_T[[task]],
            population.values_J,
            population.shares_J,
        )
        kappa, green = alone.kappa_T[0], alone.green_JTT[0, 0, 0]
        bias = (green * single.strength) ** 2 * distance
        errors.append((bias + population.noise_T[task]) / (1 - ratio_T[task] * kappa**2 * green**2))
    return np.array(errors)
