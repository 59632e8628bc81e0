"""Encoders and heads of the user's own, given by their dotted paths, of kinds that are less usual."""

import torch
from torch import Tensor, nn


class LazyScales(nn.Module):
    """Gives two maps, has a lazy layer, and one that it does not use."""

    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.width = (4, 6)
        self.fine = nn.LazyConv2d(4, 3, 2)
        self.coarse = nn.Conv2d(4, 6, 3, 2)
        self.spare = nn.Linear(2, 2)

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.fine(x_BCHW)
        return fine, self.coarse(fine.relu())


class OfAllScales(nn.Module):
    """A head that reads all maps."""

    def __init__(self, width: tuple[int, int], outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(sum(width), outputs)

    def forward(self, z: tuple[Tensor, Tensor]) -> Tensor:
        outputs: Tensor = self.linear(torch.cat([each.mean((2, 3)) for each in z], dim=1))
        return outputs


class AnySize(nn.Module):
    """Takes images of any size: z is an average over the pixels. Smooth, so that rounding stays small."""

    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.width = 6
        self.layers = nn.Sequential(
            nn.Conv2d(image_shape[0], 4, 3), nn.Tanh(), nn.Conv2d(4, 6, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1)
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.layers(x_BCHW).flatten(1)


class ImagesAndRows(nn.Module):
    """Takes images of any size, and rows of two numbers."""

    def __init__(self, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.width = 5
        self.of_images, self.of_rows = AnySize((1, 0, 0)), nn.Linear(2, 6)
        self.both = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.both((self.of_images if x.dim() == 4 else self.of_rows)(x)))
