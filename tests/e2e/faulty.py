"""An encoder of the user's own, given by its dotted path, that breaks on one rank."""

import os

import torch
from torch import Tensor

from models.lenet import LeNet


class NanOnRank1(LeNet):
    """Gives NaN on rank 1 from its third training step on; a run's first forward is thrown away."""

    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        super().__init__(image_shape, dropout=0.0)
        self.num_forwards = 0

    def forward(self, x_BCHW: Tensor) -> Tensor:
        self.num_forwards += self.training
        z_BD = super().forward(x_BCHW)
        return z_BD * torch.nan if self.num_forwards >= 4 and os.environ.get("RANK") == "1" else z_BD
