"""Exact Pareto weights for many tasks on one shared representation, inside one ordinary backward.

    import torch
    from torch import nn
    from paretrain import Balancer

    encoder, heads = nn.Linear(8, 16), nn.ModuleList([nn.Linear(16, 1), nn.Linear(16, 1)])
    optimizer = torch.optim.SGD([*encoder.parameters(), *heads.parameters()], lr=0.1)
    balancer = Balancer(tasks=["sum", "product"])

    for _ in range(3):
        x = torch.randn(32, 8)
        targets = [x.sum(1, keepdim=True), x.prod(1, keepdim=True)]
        views = balancer.split(encoder(x))  # one view of z per task, no copy
        sums = [(head(view) - y).square().sum() for head, view, y in zip(heads, views, targets)]
        balancer.total(sums=sums, counts=[32, 32]).backward()  # summed losses and labelled samples of this rank
        optimizer.step()
        optimizer.zero_grad()
        print(balancer.alpha)  # the weights of this step

The lines are the same under DistributedDataParallel, FSDP2 and DeepSpeed ZeRO; see examples/. `Balancer` is the main
class. `paretrain.rules` has the rules that it can weigh by, and `paretrain.reference` the algorithm as its paper prints
it.
"""

from paretrain.balance import Balance, BalanceError, NonFiniteError
from paretrain.balancer import Balancer
from paretrain.nonfinite import Broken
from paretrain.rules import (
    DBMTL,
    FAMO,
    IMTLG,
    NTKMTL,
    AlignedMTL,
    CAGrad,
    Chebyshev,
    ConFIG,
    DynamicWeightAverage,
    FairGrad,
    Fixed,
    GeometricMean,
    GO4Align,
    GradNorm,
    GradVac,
    LooksBack,
    MinNormWeighting,
    Nash,
    Normalised,
    PCGrad,
    Random,
    ScaleInvariant,
    SmoothChebyshev,
    SoftOptimalUncertainty,
    Stateless,
    Tension,
    Uncertainty,
    Uniform,
    UPGrad,
    Weighting,
    Weights,
)
from paretrain.window import Window

__version__ = "0.2.0.dev0"

__all__ = [
    "DBMTL",
    "FAMO",
    "IMTLG",
    "NTKMTL",
    "AlignedMTL",
    "Balance",
    "BalanceError",
    "Balancer",
    "Broken",
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
    "NonFiniteError",
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
    "Window",
]
