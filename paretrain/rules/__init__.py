"""Rules that turn one step's Gram matrix and losses into task weights α; all follow the protocol `rule.Weighting`."""

from paretrain.rules.alignment import GO4Align
from paretrain.rules.bargaining import FairGrad, Nash
from paretrain.rules.constant import Fixed, Random, Uniform
from paretrain.rules.famo import FAMO
from paretrain.rules.gradients import GradNorm, MinNormWeighting, Tension
from paretrain.rules.inverse import IMTLG, AlignedMTL, ConFIG
from paretrain.rules.lengths import DBMTL, NTKMTL
from paretrain.rules.losses import DynamicWeightAverage, Uncertainty
from paretrain.rules.normalise import Normalised
from paretrain.rules.preference import Chebyshev
from paretrain.rules.projections import CAGrad, UPGrad
from paretrain.rules.rule import LooksBack, Stateless, Weighting, Weights
from paretrain.rules.scalarised import GeometricMean, ScaleInvariant, SmoothChebyshev, SoftOptimalUncertainty
from paretrain.rules.surgery import GradVac, PCGrad

__all__ = [
    "DBMTL",
    "FAMO",
    "IMTLG",
    "NTKMTL",
    "AlignedMTL",
    "CAGrad",
    "Chebyshev",
    "ConFIG",
    "DynamicWeightAverage",
    "FairGrad",
    "Fixed",
    "GO4Align",
    "GeometricMean",
    "GradNorm",
    "GradVac",
    "LooksBack",
    "MinNormWeighting",
    "Nash",
    "Normalised",
    "PCGrad",
    "Random",
    "ScaleInvariant",
    "SmoothChebyshev",
    "SoftOptimalUncertainty",
    "Stateless",
    "Tension",
    "UPGrad",
    "Uncertainty",
    "Uniform",
    "Weighting",
    "Weights",
]
