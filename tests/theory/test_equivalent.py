import numpy as np
import pytest

from paretrain.theory.asymptotics import (
    Population,
    coupling,
    equivalent_single_tasks,
    exchangeable_gram,
    ridge_limit,
    single_task_errors,
)
from tests.theory.random_tasks import random_problem


@pytest.mark.long
@pytest.mark.parametrize("seed", range(50))
def test_each_task_has_the_error_of_its_equivalent_single_task(seed):
    problem = random_problem(seed)
    limit = ridge_limit(problem.penalty_TT, problem.population, problem.ratio_T, problem.weights_T)

    singles = equivalent_single_tasks(problem.penalty_TT, limit)
    errors_T = single_task_errors(singles, problem.population, limit, problem.ratio_T, problem.weights_T)

    np.testing.assert_allclose(errors_T, limit.test_T, rtol=1e-10)


def strengths(common, own, ratio, numbers):
    found = []
    for num_tasks in numbers:
        penalty_TT = coupling(num_tasks, common, own)
        population = Population.white(exchangeable_gram(num_tasks, 0.8), np.ones(num_tasks))
        limit = ridge_limit(penalty_TT, population, np.full(num_tasks, ratio))
        found.append(equivalent_single_tasks(penalty_TT, limit)[0].strength)
    return found


def test_more_tasks_regularise_more():
    found = strengths(1e-4, 0.5, 1, [1, 2, 4, 8, 16, 64])

    assert np.all(np.diff(found) > 0)
    np.testing.assert_allclose(found, [1e-4, 0.138, 0.288, 0.385, 0.440, 0.485], atol=6e-4)


def test_one_task_has_no_other_to_lean_on():
    assert strengths(0.3, 0.6, 2, [1])[0] == pytest.approx(0.3 * 0.6 / 0.9, rel=1e-12)
