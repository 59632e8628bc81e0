"""Representation gradients -> α: what this project is for."""

from trainer.balance.balancer import Balancer
from trainer.balance.exchange import Balance, BalanceError, NonFiniteError
from trainer.balance.nonfinite import Broken
from trainer.balance.weightings import (
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
