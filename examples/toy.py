"""A small problem for the examples: four yes/no questions about images of 16 x 16 pixels, and a network for them.

Shapes: T tasks, B samples of this rank, D representation width.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NUM_TASKS = 4
STEPS = 30
GLOBAL_BATCH = 64


class Network(nn.Module):
    """Any encoder with one linear head per task, in one module, so that a data-parallel wrapper can wrap all of it."""

    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleList(nn.Linear(width, 2) for _ in range(NUM_TASKS))

    def forward(self, x_BCHW: Tensor, split: Callable[[Tensor], tuple[Tensor, ...]]) -> list[Tensor]:
        """Apply encoder, `split` (that of a Balancer) and heads. Return the outputs of each task, (B, 2)."""
        views = split(self.encoder(x_BCHW))
        return [head(view) for head, view in zip(self.heads, views, strict=True)]


def small_encoder() -> nn.Module:
    """Return a convolution and a linear layer to 32 numbers."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 5, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(288, 32), nn.ReLU())


def batches(rank: int, world_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield this rank's slice of every global batch: images (B, 1, 16, 16) and labels (T, B)."""
    generator = torch.Generator().manual_seed(1)
    mine = slice(rank * GLOBAL_BATCH // world_size, (rank + 1) * GLOBAL_BATCH // world_size)
    for _ in range(STEPS):
        x_BCHW = torch.randn(GLOBAL_BATCH, 1, 16, 16, generator=generator)
        bands_BT = x_BCHW.reshape(GLOBAL_BATCH, NUM_TASKS, -1).mean(dim=2)
        yield x_BCHW[mine], (bands_BT > 0).long().T[:, mine]


def loss_sums(outputs: list[Tensor], labels_TB: Tensor) -> tuple[list[Tensor], list[int]]:
    """Return each task's loss summed over this rank's samples, and the number of samples."""
    sums = [F.cross_entropy(output, labels, reduction="sum") for output, labels in zip(outputs, labels_TB, strict=True)]
    return sums, [len(labels) for labels in labels_TB]
