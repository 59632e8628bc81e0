"""Rules that turn one step's Gram matrix and losses into task weights α; all follow the protocol `rule.Weighting`."""

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
