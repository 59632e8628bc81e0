"""Exact Pareto weights for many tasks on one shared representation, inside one ordinary backward.

`Balancer` is the face; `paretrain.rules` holds the rules, `paretrain.reference` the algorithm as its paper prints it.
"""

from paretrain.balance import Balance, BalanceError, NonFiniteError
from paretrain.balancer import Balancer
from paretrain.nonfinite import Broken
from paretrain.rules import (
    Chebyshev,
    DynamicWeightAverage,
    Fixed,
    GradNorm,
    MinNormWeighting,
    Normalised,
    Random,
    Tension,
    Uncertainty,
    Uniform,
    Weighting,
    Weights,
)

__version__ = "0.2.0.dev0"

__all__ = [
    "Balance",
    "BalanceError",
    "Balancer",
    "Broken",
    "Chebyshev",
    "DynamicWeightAverage",
    "Fixed",
    "GradNorm",
    "MinNormWeighting",
    "NonFiniteError",
    "Normalised",
    "Random",
    "Tension",
    "Uncertainty",
    "Uniform",
    "Weighting",
    "Weights",
]
