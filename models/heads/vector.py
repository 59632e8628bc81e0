"""Heads of a single task: they map z to the output.

Shapes: B samples, D representation width, O outputs, H x W pixels of the input, h x w cells of a spatial z.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

GROUPS = 32
"""Number of groups of a GroupNorm (Wu & He 2018, arXiv 1803.08494)."""


def mlp_head(width: int, outputs: int, hidden: int = 50, dropout: float = 0.5) -> nn.Sequential:
    """Return two fully connected layers, D - hidden - O, as in the paper's MultiMNIST experiment."""
    return nn.Sequential(
        nn.Linear(width, hidden),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(hidden, outputs),
    )


def linear_head(width: int, outputs: int) -> nn.Sequential:
    """Return one fully connected layer, D - O, as in the paper's CelebA experiment."""
    return nn.Sequential(nn.Linear(width, outputs))


def upsampling_head(width: int, outputs: int, stride: int, hidden: int = 64, kernel_size: int = 3) -> nn.Sequential:
    """Return two convolutions, D - hidden - O, and bilinear upsampling: spatial z (B, D, h, w) -> (B, O, H, W).

    Args:
        width: D.
        outputs: O.
        stride: H / h.
        hidden: channels between the convolutions.
        kernel_size: of the first convolution, in cells; that of the second is 1.
    """
    return nn.Sequential(
        nn.Conv2d(width, hidden, kernel_size, padding=_same(kernel_size)),
        nn.ReLU(),
        nn.Conv2d(hidden, outputs, kernel_size=1),
        nn.Upsample(scale_factor=stride, mode="bilinear"),
    )


def pooled(head: nn.Module) -> nn.Sequential:
    """Return the head preceded by an average over the cells of a spatial z."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


class PyramidPooling(nn.Module):
    """Append to a spatial z its averages over grids of 1, 2, 3 and 6 cells a side (Zhao et al. 2017, arXiv 1612.01105).

    Args:
        width: D.
        hidden: channels that each average is projected to.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(side), nn.Conv2d(width, hidden, kernel_size=1), nn.ReLU())
            for side in (1, 2, 3, 6)
        )

    def forward(self, z_BDhw: Tensor) -> Tensor:
        """Map (B, D, h, w) to (B, D + 4 hidden, h, w)."""
        size = z_BDhw.shape[2:]
        averages = (interpolate(level(z_BDhw), size, mode="bilinear") for level in self.levels)
        return torch.cat([z_BDhw, *averages], dim=1)


def pyramid_head(width: int, outputs: int, stride: int, hidden: int = 512, kernel_size: int = 3) -> nn.Sequential:
    """Return PSPNet's decoder, as in the paper's Cityscapes experiment: spatial z (B, D, h, w) -> (B, O, H, W).

    The authors also normalise each average, over the batch, and compare with labels of h x w pixels. Here one GroupNorm
    of 32 groups keeps the samples independent, and the output is upsampled to H x W.

    Args:
        width: D.
        outputs: O.
        stride: H / h.
        hidden: channels of each average and between the convolutions, a multiple of 32.
        kernel_size: of the first convolution, in cells.
    """
    if hidden % GROUPS:
        raise ValueError(f"hidden is a multiple of {GROUPS}, found {hidden}")
    return nn.Sequential(
        PyramidPooling(width, hidden),
        nn.Conv2d(width + 4 * hidden, hidden, kernel_size, padding=_same(kernel_size), bias=False),
        nn.GroupNorm(GROUPS, hidden),
        nn.ReLU(),
        nn.Conv2d(hidden, outputs, kernel_size=1),
        nn.Upsample(scale_factor=stride, mode="bilinear"),
    )


def _same(kernel_size: int) -> int:
    """Return the padding that keeps height and width."""
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size is odd, such as 1 or 3, found {kernel_size}")
    return kernel_size // 2
