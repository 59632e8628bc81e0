"""Losses as callers give them, sums over labelled samples and the number of those samples, and their global means.

Shapes: T tasks.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Sums = Tensor | Sequence[Tensor]
"""(T,), or one tensor of no dimension per task."""

Counts = Tensor | Sequence[Tensor] | Sequence[int]
"""(T,), or one number per task."""


class Totals(NamedTuple):
    """A step's losses, as its backward needs them.

    Attributes:
        losses_T: this rank's part of the global mean losses: over the ranks they sum to them. Float64, detached.
        counts_T: labelled samples over all ranks, float64.
        gradient_scale: the factor by which the caller scales the gradients.
    """

    losses_T: Tensor
    counts_T: Tensor
    gradient_scale: float = 1.0


def as_tensors(sums: Sums, counts: Counts, num_tasks: int) -> tuple[Tensor, Tensor]:
    """Return sums and counts (float64) on one device, (T,) both.

    Raises:
        ValueError: not one sum and one count for each task.
    """
    sums_T = sums if isinstance(sums, Tensor) else torch.stack(list(sums))
    counts_T = torch.as_tensor(counts, dtype=torch.float64, device=sums_T.device)
    if sums_T.shape != (num_tasks,) or counts_T.shape != (num_tasks,):
        found = f"{tuple(sums_T.shape)} sums and {tuple(counts_T.shape)} counts"
        raise ValueError(f"expected one loss sum and one count a task, {(num_tasks,)}; found {found}")
    return sums_T, counts_T


def means(sums_T: Tensor, counts_T: Tensor) -> Tensor:
    """Return mean losses, or this rank's part of them if the counts are global; 0 for a task without samples."""
    return sums_T / counts_T.clamp(min=1).to(sums_T.dtype)
