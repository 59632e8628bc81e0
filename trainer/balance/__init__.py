"""Representation gradients -> α: what this project is for."""

from trainer.balance.balancer import Balancer
from trainer.balance.exchange import Balance, BalanceError
from trainer.balance.weightings import Fixed, MinNormWeighting, Uniform, Weighting, Weights

__all__ = [
    "Balance",
    "BalanceError",
    "Balancer",
    "Fixed",
    "MinNormWeighting",
    "Uniform",
    "Weighting",
    "Weights",
]
