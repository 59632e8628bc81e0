"""Tasks: what an output means, its loss and its error, each as a sum and a count over labelled samples or pixels.

Sums and counts, not means: only they can be added over ranks, micro-batches and ragged batches.

Shapes: B samples, T tasks, C classes or channels, H rows, W columns; `...` is T for stacked tasks, nothing for one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

MISSING = -1
"""The class index of a sample without a label; a number without one is NaN."""

UNLABELLED = 255
"""The class index of a pixel without a label."""

SPREAD = "σ"
"""The unit of an error that is counted in standard deviations of the train split."""


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

    @property
    def unit(self) -> str:
        """What people read the error in."""
        ...

    @property
    def scale(self) -> float:
        """An error times this is in `unit`. Stacked tasks differ in it, and share all the rest."""
        ...

    def loss(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Sum of the losses over what is labelled, differentiable, and the number of labelled samples or pixels."""
        ...

    def error(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Sum of the errors over what is labelled, float64, and the number of labelled samples or pixels."""
        ...


@dataclass(frozen=True)
class Classification:
    """One class out of C a sample: cross-entropy, and the percentage of wrong answers."""

    name: str
    num_classes: int
    unit: ClassVar[str] = "%"
    scale: ClassVar[float] = 100.0

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
        """1 for each wrong answer. Shapes as for `loss`."""
        labelled = target != MISSING
        wrong = labelled & (output.argmax(dim=-1) != target)
        return wrong.sum(dim=0, dtype=torch.float64), labelled.sum(dim=0)


@dataclass(frozen=True)
class Regression:
    """One number a sample, standardised: the Huber loss, and the mean absolute error.

    The Huber loss (1964) is half the squared error up to one standard deviation and linear beyond: one outlier pulls
    no harder than a sample one standard deviation off, so it cannot decide the batch's Gram matrix alone.
    """

    name: str
    unit: str = SPREAD
    scale: float = 1.0

    @property
    def num_outputs(self) -> int:
        """The number itself."""
        return 1

    def loss(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Sum of the Huber losses. `output` (B, ..., 1), `target` (B, ...) number or NaN."""
        residual, labelled = _residual(output.squeeze(-1), target)
        return F.huber_loss(residual, torch.zeros_like(residual), reduction="none").sum(dim=0), labelled.sum(dim=0)

    def error(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Sum of the absolute errors. Shapes as for `loss`."""
        residual, labelled = _residual(output.squeeze(-1), target)
        return residual.abs().sum(dim=0, dtype=torch.float64), labelled.sum(dim=0)


@dataclass(frozen=True)
class Segmentation:
    """One class out of C a pixel: cross-entropy, and the percentage of wrong pixels."""

    name: str
    num_classes: int
    unit: ClassVar[str] = "%"
    scale: ClassVar[float] = 100.0

    @property
    def num_outputs(self) -> int:
        """One logit a class."""
        return self.num_classes

    def loss(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Sum of the cross-entropies in nats. `output` (B, C, H, W) logits, `target` (B, H, W) class or UNLABELLED."""
        target_BHW = target.long()
        losses = F.cross_entropy(_widened(output), target_BHW, ignore_index=UNLABELLED, reduction="sum")
        return losses, (target_BHW != UNLABELLED).sum()

    def error(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """1 for each wrong pixel. Shapes as for `loss`."""
        labelled = target != UNLABELLED
        wrong = labelled & (output.argmax(dim=1) != target)
        return wrong.sum(dtype=torch.float64), labelled.sum()


@dataclass(frozen=True)
class DenseRegression:
    """C numbers a pixel: the absolute error, as loss and as error (Sener & Koltun 2018, section 5.3)."""

    name: str
    num_outputs: int
    unit: str = SPREAD
    scale: float = 1.0

    def loss(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Sum of the absolute errors. `output` (B, C, H, W), `target` (B, H, W, C) number or NaN; each NaN counts 0."""
        residual, labelled = _residual(output.permute(0, 2, 3, 1), target)
        return residual.abs().sum(), labelled.sum()

    def error(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Sum of the absolute errors. Shapes as for `loss`."""
        residual, labelled = _residual(output.permute(0, 2, 3, 1), target)
        return residual.abs().sum(dtype=torch.float64), labelled.sum()


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
    """Every task's error in its unit, as `task_losses` gives the losses."""
    sums_T, counts_T = _measure(lambda task, output, target: task.error(output, target), tasks, outputs, targets)
    return sums_T * sums_T.new_tensor([task.scale for task in tasks]), counts_T


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


def _widened(output: Tensor) -> Tensor:
    """Losses are sums over many samples: under autocast the outputs are too narrow for that."""
    return output.to(torch.promote_types(output.dtype, torch.float32))


def _residual(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Output minus target, 0 where the target is NaN, and where it is not."""
    labelled = ~target.isnan()
    output = _widened(output)
    return (output - target.to(output.dtype).where(labelled, 0)).where(labelled, 0), labelled


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """log Σ_c exp(x_c - x_target), with the target's own term as the constant 1.

    So the target's derivative is minus the sum of the others and not p - 1: it keeps its digits where p is nearly 1,
    and the derivatives sum to zero within the rounding of their own size. The Gram of stacked heads needs that.
    """
    logits = _widened(logits)
    index = target.unsqueeze(-1)
    margins = logits - logits.gather(-1, index)
    return margins.scatter(-1, index, 0.0).logsumexp(dim=-1)
