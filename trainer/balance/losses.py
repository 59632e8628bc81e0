"""Losses as callers give them: sums over labelled samples, and the number of those samples.

Shapes: T tasks.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

Numbers = Tensor | Sequence[Tensor]
"""(T,), or one number a task."""


def as_tensors(sums: Numbers, counts: Numbers, num_tasks: int) -> tuple[Tensor, Tensor]:
    """Sums and counts (float64) on one device, (T,) both.

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
    """Mean losses, or a part of them where the counts are those of more samples; 0 for a task without any."""
    return sums_T / counts_T.clamp(min=1).to(sums_T.dtype)
