"""A batch of three tasks on two ragged ranks: labels are missing, and task 1 has none on rank 0.

Shapes: T tasks, B samples.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from tests.support.problem import MISSING, Problem

PROBLEM = Problem(num_tasks=3, missing=0.3, blind=(1,))
LABELLED = Problem(num_tasks=3)
NAMES = ["left", "middle", "right"]
CUT = 7
"""Rank 0 has the first 7 of the 24 samples."""

Batch = tuple[Tensor, Tensor]


def batch(rank: int, problem: Problem) -> Batch:
    x_BCHW, labels_TB = problem.data(0)
    mine = slice(0, CUT) if rank == 0 else slice(CUT, None)
    return x_BCHW[mine], labels_TB[:, mine]


def summed(outputs: Any, labels_TB: Tensor) -> dict[str, Any]:
    pairs = [
        (F.cross_entropy(output, labels_B, ignore_index=MISSING, reduction="sum"), int((labels_B != MISSING).sum()))
        for output, labels_B in zip(outputs, labels_TB, strict=True)
    ]
    return {"sums": [loss for loss, _ in pairs], "counts": [count for _, count in pairs]}
