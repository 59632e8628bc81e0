"""Tasks: what an output means, its loss and its error, each as a sum and a count over labelled samples or pixels.

Sums and counts, not means: only they can be added over ranks, micro-batches and ragged batches. What people read is a
ratio of the two, or the mean of several: a segmentation has one a class.

Shapes: B samples, T tasks, C classes or channels, H rows, W columns, N ratios of all tasks; `...` is T for stacked
tasks, nothing for one.
"""

import itertools
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

MIOU = "% mIoU"
"""The unit of the mean intersection over union. It is a score and no error: more is better."""


class Task(Protocol):
    """What the trainer asks of a task. `loss` and `measure` take batches, the samples first."""

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
        """What people read the measure in."""
        ...

    @property
    def scale(self) -> float:
        """A ratio times this is in `unit`. Stacked tasks differ in it, and share all the rest."""
        ...

    @property
    def parts(self) -> Sequence[str]:
        """What has a ratio each, of which the measure is the mean: classes. Empty: there is one ratio."""
        ...

    def loss(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Sum of the losses over what is labelled, differentiable, and the number of labelled samples or pixels."""
        ...

    def measure(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """What people read, as a sum in float64 and a count over what is labelled; of several parts, one of each."""
        ...


@dataclass(frozen=True)
class Classification:
    """One class out of C a sample: cross-entropy, and the percentage of wrong answers."""

    name: str
    num_classes: int
    unit: ClassVar[str] = "%"
    scale: ClassVar[float] = 100.0
    parts: ClassVar[tuple[str, ...]] = ()

    @property
    def num_outputs(self) -> int:
        """One logit a class."""
        return self.num_classes

    def loss(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Sum of the cross-entropies in nats. `output` (B, ..., C) logits, `target` (B, ...) class or MISSING."""
        labelled = target != MISSING
        losses = _cross_entropy(output, target.where(labelled, 0))
        return losses.where(labelled, 0).sum(dim=0), labelled.sum(dim=0)

    def measure(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
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
    parts: ClassVar[tuple[str, ...]] = ()

    @property
    def num_outputs(self) -> int:
        """The number itself."""
        return 1

    def loss(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Sum of the Huber losses. `output` (B, ..., 1), `target` (B, ...) number or NaN."""
        residual, labelled = _residual(output.squeeze(-1), target)
        return F.huber_loss(residual, torch.zeros_like(residual), reduction="none").sum(dim=0), labelled.sum(dim=0)

    def measure(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Sum of the absolute errors. Shapes as for `loss`."""
        residual, labelled = _residual(output.squeeze(-1), target)
        return residual.abs().sum(dim=0, dtype=torch.float64), labelled.sum(dim=0)


@dataclass(frozen=True)
class Segmentation:
    """One class out of C a pixel: cross-entropy, and the mean over the classes of intersection over union."""

    name: str
    classes: Sequence[str]
    unit: ClassVar[str] = MIOU
    scale: ClassVar[float] = 100.0

    @property
    def num_outputs(self) -> int:
        """One logit a class."""
        return len(self.classes)

    @property
    def parts(self) -> Sequence[str]:
        """The classes."""
        return self.classes

    def loss(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Sum of the cross-entropies in nats. `output` (B, C, H, W) logits, `target` (B, H, W) class or UNLABELLED."""
        target_BHW = target.long()
        losses = F.cross_entropy(_widened(output), target_BHW, ignore_index=UNLABELLED, reduction="sum")
        return losses, (target_BHW != UNLABELLED).sum()

    def measure(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels that a class has in answer and label both, and in either: (C,) and (C,). Shapes as for `loss`.

        As Cityscapes has it: the ratio of the pixels of all images together, not a mean over images. A class in neither
        is left out of the mean; an answer where there is no label counts for nothing.
        """
        labelled = target != UNLABELLED
        label_N, answer_N = target[labelled].long(), output.argmax(dim=1)[labelled]
        both_C, labels_C, answers_C = (
            torch.bincount(found_N, minlength=len(self.classes)).double()
            for found_N in (label_N[label_N == answer_N], label_N, answer_N)
        )
        return both_C, labels_C + answers_C - both_C


@dataclass(frozen=True)
class DenseRegression:
    """C numbers a pixel: the absolute error, as loss and as error (Sener & Koltun 2018, section 5.3)."""

    name: str
    num_outputs: int
    unit: str = SPREAD
    scale: float = 1.0
    parts: ClassVar[tuple[str, ...]] = ()

    def loss(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Sum of the absolute errors. `output` (B, C, H, W), `target` (B, H, W, C) number or NaN; each NaN counts 0."""
        residual, labelled = _residual(output.permute(0, 2, 3, 1), target)
        return residual.abs().sum(), labelled.sum()

    def measure(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
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
    return _applied(lambda task, output, target: task.loss(output, target), tasks, outputs, targets)


def task_measures(
    tasks: Sequence[Task], outputs: Tensor | Sequence[Tensor], targets: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Sums and counts of all tasks' measures, one task after another, to be added up: (N,) and (N,).

    N is T, or more where a task has parts. Arguments as for `task_losses`.
    """
    return _applied(lambda task, output, target: task.measure(output, target), tasks, outputs, targets)


def ratios(tasks: Sequence[Task], sums_N: Tensor, counts_N: Tensor) -> list[list[float | None]]:
    """Sums over counts of each task, a part each, in the task's unit; None where there is nothing to count."""
    found = iter(zip(sums_N.tolist(), counts_N.tolist(), strict=True))
    each = [list(itertools.islice(found, len(task.parts) or 1)) for task in tasks]
    return [
        [task.scale * total / count if count else None for total, count in pairs]
        for task, pairs in zip(tasks, each, strict=True)
    ]


def _applied(
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
    return torch.cat([total.reshape(-1) for total in sums]), torch.cat([count.reshape(-1) for count in counts])


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
