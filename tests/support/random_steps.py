"""Random steps to feed rules with.

Shapes: T tasks, A active tasks, N entries of the representation, S steps.
"""

import io
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from paretrain import Weighting, Weights
from paretrain.rules.rule import LooksBack


@dataclass(frozen=True)
class Step:
    """What one step shows to a rule."""

    gradients_AN: np.ndarray
    losses_A: np.ndarray
    tasks_A: np.ndarray

    @property
    def gram_AA(self) -> np.ndarray:
        return self.gradients_AN @ self.gradients_AN.T

    def weigh(self, rule: Weighting) -> Weights:
        return rule(self.gram_AA, self.losses_A, self.tasks_A)


def random_steps(
    num_tasks: int, num_steps: int, *, absent: Sequence[Set[int]] = (frozenset(),), seed: int = 0
) -> list[Step]:
    """Conflicting gradients of several lengths, falling losses; step s lacks the tasks `absent[s % len(absent)]`."""
    generator = np.random.default_rng(seed)
    scales_T1 = np.exp(generator.normal(size=(num_tasks, 1)))
    steps = []
    for step in range(num_steps):
        gradients_TN = scales_T1 * generator.normal(size=(num_tasks, 2 * num_tasks + 1))
        losses_T = np.exp(generator.normal(size=num_tasks) / 4 - step / 50)
        tasks_A = np.array(sorted(set(range(num_tasks)) - absent[step % len(absent)]))
        steps.append(Step(gradients_TN[tasks_A], losses_T[tasks_A], tasks_A))
    return steps


def alphas(rule: Weighting, steps: Sequence[Step]) -> Iterator[np.ndarray]:
    """Yield the weights of each step. A rule that looks back sees losses that come nearer to 1."""
    for step in steps:
        alpha_A = step.weigh(rule).alpha_A
        if isinstance(rule, LooksBack):
            losses_T = np.ones(step.tasks_A.max() + 1)
            losses_T[step.tasks_A] = step.losses_A**0.8
            rule.after_step(losses_T)
        yield alpha_A


def through_a_checkpoint(state: Mapping[str, Any]) -> dict[str, Any]:
    """Written and read as a checkpoint does: only plain values survive weights_only."""
    file = io.BytesIO()
    torch.save(dict(state), file)
    file.seek(0)
    return torch.load(file, weights_only=True)
