"""The tasks as a population: labels, similarity, noise, and the features' covariance.

Shapes: T tasks, J distinct eigenvalues of the features' covariance.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from paretrain.theory.arrays import Array


def _one() -> Array:
    return np.ones(1)


@dataclass(frozen=True)
class Population:
    """Hold all that the limits need to know of the tasks, besides the sizes of their samples (equation 1).

    `gram_JTT` holds the inner products of the tasks' linear parts β_t within the directions of each eigenvalue,
    `values_J` the eigenvalues and `shares_J` the share of the directions that each takes. White features, the default,
    have one eigenvalue, 1.
    """

    gram_JTT: Array
    noise_T: Array
    values_J: Array = field(default_factory=_one)
    shares_J: Array = field(default_factory=_one)

    def __post_init__(self) -> None:
        num_values, num_tasks = self.gram_JTT.shape[0], self.noise_T.shape[0]
        if self.gram_JTT.shape != (num_values, num_tasks, num_tasks):
            raise ValueError(f"gram_JTT is {self.gram_JTT.shape}; expected (J, {num_tasks}, {num_tasks})")
        if self.values_J.shape != (num_values,) or self.shares_J.shape != (num_values,):
            raise ValueError(
                f"values_J is {self.values_J.shape}, shares_J {self.shares_J.shape}; expected ({num_values},)"
            )
        if not math.isclose(float(self.shares_J.sum()), 1):
            raise ValueError(f"shares_J sums to {self.shares_J.sum()}; expected 1")

    def signal(self) -> Array:
        """Return Γ (T x T): the covariance between what the tasks' linear parts predict."""
        signal_TT: Array = np.einsum("j,jts->ts", self.values_J, self.gram_JTT)
        return signal_TT

    @staticmethod
    def white(gram_TT: Array, noise_T: Array) -> "Population":
        """Return tasks over features with unit covariance."""
        return Population(np.asarray(gram_TT, dtype=float)[None], np.asarray(noise_T, dtype=float))


@dataclass(frozen=True)
class LabelFunction:
    """Describe labels φ(z), z ~ N(0, s²), by what equation 1 needs: θ and E[φ(z)²] as functions of s²."""

    apply: Callable[[Array], Array]
    slope: Callable[[Array], Array]
    second_moment: Callable[[Array], Array]


LABELS: Mapping[str, LabelFunction] = {
    "linear": LabelFunction(lambda z: z, np.ones_like, lambda s2: s2),
    "sign": LabelFunction(np.sign, lambda s2: np.sqrt(2 / (math.pi * s2)), np.ones_like),
    "relu": LabelFunction(lambda z: np.maximum(z, 0), lambda s2: np.full_like(s2, 0.5), lambda s2: s2 / 2),
}


def perceptron(labels: str, seen_TT: Array, total_T: Array, noise: float = 0.0) -> Population:
    """Return the population of y = φ(aᵀξ_t) + ε over white features (equation 1).

    `seen_TT` holds ⟨b_t, b_s⟩, `total_T` the squared lengths |ξ_t|², `noise` the variance of ε.
    """
    slope_T = LABELS[labels].slope(total_T)
    gram_TT = slope_T[:, None] * seen_TT * slope_T
    return Population.white(gram_TT, LABELS[labels].second_moment(total_T) + noise - np.diag(gram_TT))


def exchangeable_gram(num_tasks: int, cosine: float, squared_norm: float = 1.0) -> Array:
    """Return squared_norm · [ρ 11ᵀ + (1-ρ) I], the Gram matrix of T vectors with one common cosine ρ."""
    return squared_norm * (cosine * np.ones((num_tasks, num_tasks)) + (1 - cosine) * np.eye(num_tasks))
