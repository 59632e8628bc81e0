"""What the loaders return, and how a rank reads.

Shapes: B samples of this rank's batch, H rows, W columns, C channels, F features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from trainer.data.reading.augment import NOTHING, Draws
from trainer.data.reading.workers import STOPPED_SECONDS


@dataclass(frozen=True)
class Batch:
    """This rank's slice of a global batch.

    Attributes:
        inputs: uint8 (B, H, W, C) images or float32 (B, F) features; zeros for padding and bad samples.
        targets: task -> target. The value after `or` marks samples without a label, padding and bad samples.
            classification: int64 (B,), or MISSING (-1). regression: float32 (B,), as (value - mean) / std, or NaN.
            segmentation: uint8 (B, H, W), or UNLABELLED (255). dense_regression: float32 (B, H, W, C), as
            (value - mean) / std, or NaN.
        sample_ids_B: int64 position of each sample in its split; PADDING (-1) for a slot that only fills up the batch.
        draws: how to augment the images.
    """

    inputs: torch.Tensor
    targets: dict[str, torch.Tensor]
    sample_ids_B: torch.Tensor
    draws: Draws = NOTHING


@dataclass(frozen=True)
class RankOptions:
    """Which rank this is, and how it reads. The global batches do not depend on any of it.

    Attributes:
        rank: this process's rank.
        world_size: number of processes.
        workers: processes that decode ahead; 0 decodes in this process. Training on a copy of remote data uses at least
            one, so that this process never waits for a server.
        pin_memory: put tensors in page-locked memory, from which a GPU copies asynchronously.
        stopped_seconds: how long a worker may be stopped.
    """

    rank: int = 0
    world_size: int = 1
    workers: int = 0
    pin_memory: bool = False
    stopped_seconds: float = STOPPED_SECONDS


ALONE = RankOptions()
"""One process without workers."""


def batch_of(
    sample_ids_B: np.ndarray,
    buffers: Sequence[np.ndarray],
    targets: Mapping[str, np.ndarray],
    draws: Draws = NOTHING,
    *,
    pin_memory: bool = False,
) -> Batch:
    """Return what was read as tensors, which share the arrays' memory unless it is pinned."""

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).pin_memory() if pin_memory else torch.from_numpy(array)

    return Batch(
        inputs=tensor(buffers[0]),
        targets={name: tensor(target) for name, target in targets.items()},
        sample_ids_B=torch.from_numpy(sample_ids_B),
        draws=draws,
    )
