"""Tasks: what an output means, its loss and its error, each as a sum and a count over labelled samples.

Sums and counts, not means: only they can be added over ranks, micro-batches and ragged batches.

Shapes: B samples, T tasks, C classes; `...` is T for stacked tasks, nothing for one task.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

MISSING = -1
"""The class index of a sample without a label."""


class Task(Protocol):
    """What the trainer asks of a task. `loss` and `error` take batches, the samples first."""

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
        """Sum of the cross-entropies in nats. `output` (B, ..., C) logits, `target` (B, ...) class or MISSING."""
        labelled = target != MISSING
        losses = _cross_entropy(output, target.where(labelled, 0))
        return losses.where(labelled, 0).sum(dim=0), labelled.sum(dim=0)

    def error(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """100 for each wrong answer, so that the mean is a percentage. Shapes as for `loss`."""
        labelled = target != MISSING
        wrong = labelled & (output.argmax(dim=-1) != target)
        return 100.0 * wrong.sum(dim=0, dtype=torch.float64), labelled.sum(dim=0)


def task_losses(
    tasks: Sequence[Task], outputs: Tensor | Sequence[Tensor], targets: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Every task's loss, summed over this rank's labelled samples, and the number of those samples: (T,) and (T,).

    Args:
        tasks: in the order of the outputs.
        outputs: what `MultiTaskModel` gives: (B, T, C) of tasks that are alike, or one output a task.
        targets: task name -> target, on any device.
    """
    return _measure(lambda task, output, target: task.loss(output, target), tasks, outputs, targets)


def task_errors(
    tasks: Sequence[Task], outputs: Tensor | Sequence[Tensor], targets: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Every task's error, as `task_losses` gives the losses."""
    return _measure(lambda task, output, target: task.error(output, target), tasks, outputs, targets)


def _measure(
    measure: Callable[[Task, Tensor, Tensor], tuple[Tensor, Tensor]],
    tasks: Sequence[Task],
    outputs: Tensor | Sequence[Tensor],
    targets: Mapping[str, Tensor],
) -> tuple[Tensor, Tensor]:
    if isinstance(outputs, Tensor):
        target_BT = torch.stack([targets[task.name] for task in tasks], dim=1)
        return measure(tasks[0], outputs, target_BT.to(outputs.device, non_blocking=True))
    triples = zip(tasks, outputs, (targets[task.name] for task in tasks), strict=True)
    measured = [measure(task, output, target.to(output.device, non_blocking=True)) for task, output, target in triples]
    sums, counts = zip(*measured, strict=True)
    return torch.stack(sums), torch.stack(counts)


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """log Σ_c exp(x_c - x_target), with the target's own term as the constant 1.

    So the target's derivative is minus the sum of the others and not p - 1: it keeps its digits where p is nearly 1,
    and the derivatives sum to zero within the rounding of their own size. The Gram of stacked heads needs that.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    index = target.unsqueeze(-1)
    margins = logits - logits.gather(-1, index)
    return margins.scatter(-1, index, 0.0).logsumexp(dim=-1)
