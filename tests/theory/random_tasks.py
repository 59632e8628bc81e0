"""Random problems for the tests: tasks that differ in everything."""

from dataclasses import dataclass

import numpy as np

from paretrain.theory.asymptotics import Population


@dataclass(frozen=True)
class Problem:
    penalty_TT: np.ndarray
    population: Population
    ratio_T: np.ndarray
    weights_T: np.ndarray


def random_definite(generator, size):
    root = generator.standard_normal((size, size + 2))
    return root @ root.T / size


def random_problem(seed, *, num_values=1):
    generator = np.random.default_rng(seed)
    num_tasks = int(generator.integers(2, 7))
    gram_JTT = np.stack([random_definite(generator, num_tasks) for _ in range(num_values)])
    values_J = np.ones(1) if num_values == 1 else generator.uniform(0.2, 4, num_values)
    population = Population(
        gram_JTT, generator.uniform(0.1, 2, num_tasks), values_J, generator.dirichlet(np.ones(num_values))
    )
    return Problem(
        random_definite(generator, num_tasks) + 0.05 * np.eye(num_tasks),
        population,
        generator.uniform(0.2, 4, num_tasks),
        generator.uniform(0.3, 3, num_tasks),
    )
