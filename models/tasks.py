"""Tasks: what an output means, its loss and its error, each as a sum and a count over labelled samples.

Sums and counts, not means: only they can be added over ranks, micro-batches and ragged batches.

Shapes: B samples, C classes.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

MISSING = -1
"""The class index of a sample without a label."""


class Task(Protocol):
    """What the trainer asks of a task."""

    @property
    def name(self) -> str:
        """The task's name, as in the data's manifest."""
        ...

    @property
    def num_outputs(self) -> int:
        """The width that its head must have."""
        ...

    def loss(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Sum of the losses over labelled samples, differentiable, and the number of those samples."""
        ...

    def error(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Sum of the errors over labelled samples, in units whose mean is reported, and the number of those samples."""
        ...


@dataclass(frozen=True)
class Classification:
    """One class out of C a sample: cross-entropy, and the percentage of wrong answers."""

    name: str
    num_classes: int

    @property
    def num_outputs(self) -> int:
        """One logit a class."""
        return self.num_classes

    def loss(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy in nats, summed. `output` (B, C) logits, `target` (B,) class indices or MISSING."""
        return F.cross_entropy(output, target, ignore_index=MISSING, reduction="sum"), (target != MISSING).sum()

    def error(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """100 for each wrong answer, so that the mean is a percentage."""
        labelled = target != MISSING
        wrong = labelled & (output.argmax(dim=1) != target)
        return 100.0 * wrong.sum(dtype=torch.float64), labelled.sum()
