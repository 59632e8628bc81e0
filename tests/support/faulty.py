"""Modules of the user's own, given by their dotted paths, that break.

Each counts its training forwards; a run's first two are thrown away, so that of step n is number n + 2.
"""

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.encoders.lenet import LeNet
from paretrain import MinNormWeighting


class Counting(LeNet):
    """Knows how many training forwards it has begun."""

    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        super().__init__(image_shape, dropout=0.0)
        self.num_forwards = 0

    def forward(self, x_BCHW: Tensor) -> Tensor:
        self.num_forwards += self.training
        return super().forward(x_BCHW)


class NanOnRank1(Counting):
    """Gives NaN on rank 1 from its third training step on."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        z_BD = super().forward(x_BCHW)
        return z_BD * torch.nan if self.num_forwards >= 5 and os.environ.get("RANK") == "1" else z_BD


class Normalised(Counting):
    """Has running statistics, and in its fifth training step a gradient that is not finite behind a z that is."""

    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        super().__init__(image_shape)
        self.norm = nn.BatchNorm1d(self.width)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        z_BD = super().forward(x_BCHW)
        if self.num_forwards == 7:
            z_BD = z_BD + (z_BD - z_BD.detach()).square().sum().sqrt()  # 0, and ∂√x/∂x is infinite there
        return self.norm(z_BD)


class Overflowing(Counting):
    """Has, in its second training step, a gradient that float16 has no room for once it is scaled."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        z_BD = super().forward(x_BCHW)
        return z_BD + 1e5 * (z_BD - z_BD.detach()) if self.num_forwards == 4 else z_BD


class NanOfEverySecondTask(nn.Linear):
    """Gives NaN in its second training step; every second one that is built."""

    num_built = 0

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__(width, outputs)
        NanOfEverySecondTask.num_built += 1
        self.breaks = NanOfEverySecondTask.num_built % 2 == 0
        self.num_forwards = 0

    def forward(self, z_BD: Tensor) -> Tensor:
        self.num_forwards += self.training
        output = super().forward(z_BD)
        return output * torch.nan if self.breaks and self.num_forwards == 4 else output


class Tied(LeNet):
    """Has a layer under two names."""

    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        super().__init__(image_shape, dropout=0.0)
        self.again = self.features[0]


class RemembersAnArray(MinNormWeighting):
    """A rule whose state is not of plain values."""

    def state_dict(self) -> dict[str, Any]:
        return {"step": 3, "memory": {"losses_T": np.zeros(2)}}
