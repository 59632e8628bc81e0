"""Rules that turn one step's reduced Gram into task weights α: one idea a file, one protocol (`rule.Weighting`)."""

from trainer.balance.weightings.constant import Fixed, Random, Uniform
from trainer.balance.weightings.gradients import GradNorm, MinNormWeighting, Tension
from trainer.balance.weightings.losses import DynamicWeightAverage, Uncertainty
from trainer.balance.weightings.normalise import Normalised
from trainer.balance.weightings.preference import Chebyshev
from trainer.balance.weightings.rule import Weighting, Weights

__all__ = [
    "Chebyshev",
    "DynamicWeightAverage",
    "Fixed",
    "GradNorm",
    "MinNormWeighting",
    "Normalised",
    "Random",
    "Tension",
    "Uncertainty",
    "Uniform",
    "Weighting",
    "Weights",
]
