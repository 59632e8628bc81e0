"""The batches that loaders return, and the options by which a rank reads them.

Shapes: B samples of this rank's batch, H rows, W columns, C channels, F features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainer.data.reading.augment import NOTHING, Draws, cut
from trainer.data.reading.workers import STOPPED_SECONDS


@dataclass(frozen=True)
class Batch:
    """This rank's slice of a global batch.

    Attributes:
        inputs: uint8 (B, H, W, C) images or float32 (B, F) features; zeros for padding and bad samples. Where sources
            have inputs of several shapes, a tensor for each shape; their samples follow one another, as in the targets.
        targets: task -> target. The value after `or` marks samples without a label, padding and bad samples.
            classification: int64 (B,), or MISSING (-1). regression: float32 (B,), as (value - mean) / std, or NaN.
            segmentation: uint8 (B, H, W), or UNLABELLED (255). dense_regression: float32 (B, H, W, C), as
            (value - mean) / std, or NaN.
        sample_ids_B: int64 position of each sample in its split; PADDING (-1) for a slot that only fills up the batch.
        draws: how to augment the images.
    """

    inputs: Tensor | tuple[Tensor, ...]
    targets: dict[str, Tensor]
    sample_ids_B: Tensor
    draws: Draws = NOTHING

    @property
    def only_inputs(self) -> Tensor:
        """The inputs of a batch that has them in one shape."""
        assert isinstance(self.inputs, Tensor), "these are of several shapes"
        return self.inputs

    def by_shape(self) -> "list[Batch]":
        """Cut the batch into batches whose inputs have one shape each."""
        if isinstance(self.inputs, Tensor):
            return [self]
        sizes = [len(inputs) for inputs in self.inputs]
        of_tasks = {name: target.split(sizes) for name, target in self.targets.items()}
        columns = zip(self.inputs, self.sample_ids_B.split(sizes), cut(self.draws, sizes), strict=True)
        return [
            Batch(inputs, {name: targets[place] for name, targets in of_tasks.items()}, ids_B, draws)
            for place, (inputs, ids_B, draws) in enumerate(columns)
        ]


def joined(parts: Sequence[Batch]) -> Batch:
    """Join what `Batch.by_shape` has cut. Their draws are dropped: the images must be augmented already."""
    if len(parts) == 1:
        return parts[0]
    return Batch(
        inputs=tuple(part.only_inputs for part in parts),
        targets={name: torch.cat([part.targets[name] for part in parts]) for name in parts[0].targets},
        sample_ids_B=torch.cat([part.sample_ids_B for part in parts]),
    )


@dataclass(frozen=True)
class RankOptions:
    """The rank that reads, and its options. The global batches do not depend on any of it.

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
    inputs: Sequence[np.ndarray],
    targets: Mapping[str, np.ndarray],
    draws: Draws = NOTHING,
    *,
    pin_memory: bool = False,
) -> Batch:
    """Return what was read as tensors, which share the arrays' memory unless it is pinned.

    Args:
        sample_ids_B: see `Batch`.
        inputs: an array for each shape.
        targets: see `Batch`.
        draws: see `Batch`.
        pin_memory: whether to pin.
    """

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).pin_memory() if pin_memory else torch.from_numpy(array)

    first, *others = map(tensor, inputs)
    return Batch(
        inputs=(first, *others) if others else first,
        targets={name: tensor(target) for name, target in targets.items()},
        sample_ids_B=torch.from_numpy(sample_ids_B),
        draws=draws,
    )
