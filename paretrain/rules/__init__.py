"""Rules that turn one step's reduced Gram into task weights α: one idea a file, one protocol (`rule.Weighting`)."""

from paretrain.rules.constant import Fixed, Random, Uniform
from paretrain.rules.gradients import GradNorm, MinNormWeighting, Tension
from paretrain.rules.losses import DynamicWeightAverage, Uncertainty
from paretrain.rules.normalise import Normalised
from paretrain.rules.preference import Chebyshev
from paretrain.rules.rule import Weighting, Weights

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
