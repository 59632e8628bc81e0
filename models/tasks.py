"""Tasks: the meaning of an output, its loss and its measure, both as sum and count over labelled samples or pixels.

Sums and counts can be added over ranks, micro-batches and ragged batches; means cannot. Users see the ratio of the two,
or the mean of several ratios: a segmentation has one per class.

The file is long because the four kinds of task are compared best side by side.

Shapes: B samples, T tasks, C classes or channels, H rows, W columns, N ratios of all tasks; `...` is T for stacked
tasks, nothing for one.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from models.losses import ABSOLUTE, CROSS_ENTROPY, HUBER, ClassLoss, NumberLoss, grouped, widened

MISSING = -1
"""The class index of a sample without a label. For a number, NaN means no label."""

UNLABELLED = 255
"""The class index of a pixel without a label."""

SPREAD = "σ"
"""The unit of an error in standard deviations of the train split."""

MIOU = "% mIoU"
"""The unit of the mean intersection over union. It is a score, not an error: higher is better."""


class Task(Protocol):
    """The interface of a task. `loss` and `measure` take batches, with the samples along the first axis."""

    @property
    def name(self) -> str:
        """Name of the task, as in the manifest of the data."""
        ...

    @property
    def kind(self) -> str:
        """Kind of the task, as in the manifest of the data."""
        ...

    @property
    def num_outputs(self) -> int:
        """Number of outputs of its head."""
        ...

    @property
    def unit(self) -> str:
        """Unit of the measure."""
        ...

    @property
    def scale(self) -> float:
        """Factor from a ratio to `unit`. Stacked tasks may differ in it, but in nothing else."""
        ...

    @property
    def parts(self) -> Sequence[str]:
        """Names of the ratios whose mean is the measure, such as classes. Empty: there is one ratio."""
        ...

    def loss(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum of the losses, which is differentiable, and the number of labelled samples or pixels."""
        ...

    def measure(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the measure as a sum in float64 and a count over labelled samples or pixels, for each part."""
        ...

    def predict(self, output: Tensor) -> Tensor:
        """Return what the output says: probabilities of the classes along the last axis, or standardised numbers."""
        ...


@dataclass(frozen=True)
class Classification:
    """One of C classes per sample. Loss: cross-entropy by default. Measure: the percentage of wrong answers."""

    name: str
    num_classes: int
    objective: ClassLoss = CROSS_ENTROPY
    kind: ClassVar[str] = "classification"
    unit: ClassVar[str] = "%"
    scale: ClassVar[float] = 100.0
    parts: ClassVar[tuple[str, ...]] = ()

    @property
    def num_outputs(self) -> int:
        """One logit per class."""
        return self.num_classes

    def loss(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum of the losses. `output`: (B, ..., C) logits; `target`: (B, ...) class or MISSING."""
        labelled = target != MISSING
        losses = self.objective(output, target.where(labelled, 0))
        return losses.where(labelled, 0).sum(dim=0), labelled.sum(dim=0)

    def measure(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Count the wrong answers. Shapes as for `loss`."""
        labelled = target != MISSING
        wrong = labelled & (output.argmax(dim=-1) != target)
        return wrong.sum(dim=0, dtype=torch.float64), labelled.sum(dim=0)

    def predict(self, output: Tensor) -> Tensor:
        """Return the probabilities of the classes: (B, ..., C)."""
        output = widened(output)
        if self.num_classes == 2:  # The same in a tenth of the time: along so short an axis all is slow.
            margin = output[..., 1] - output[..., 0]
            return torch.stack([(-margin).sigmoid(), margin.sigmoid()]).movedim(0, -1)
        return output.softmax(dim=-1)


@dataclass(frozen=True)
class Regression:
    """One standardised number per sample. Loss: Huber by default. Measure: the mean absolute error.

    The Huber loss (1964) is half the squared error up to one standard deviation, and linear beyond: the gradient of an
    outlier is no larger than at one standard deviation, so it cannot dominate the Gram matrix of the batch.
    """

    name: str
    unit: str = SPREAD
    scale: float = 1.0
    objective: NumberLoss = HUBER
    kind: ClassVar[str] = "regression"
    parts: ClassVar[tuple[str, ...]] = ()

    @property
    def num_outputs(self) -> int:
        """One: the number."""
        return 1

    def loss(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum of the losses. `output`: (B, ..., 1); `target`: (B, ...) number or NaN."""
        residual, labelled = _residual(output.squeeze(-1), target)
        return self.objective(residual).sum(dim=0), labelled.sum(dim=0)

    def measure(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum of the absolute errors. Shapes as for `loss`."""
        residual, labelled = _residual(output.squeeze(-1), target)
        return residual.abs().sum(dim=0, dtype=torch.float64), labelled.sum(dim=0)

    def predict(self, output: Tensor) -> Tensor:
        """Return the standardised numbers: (B, ..., 1)."""
        return widened(output)


@dataclass(frozen=True)
class Segmentation:
    """One of C classes per pixel. Loss: cross-entropy by default. Measure: the mean intersection over union."""

    name: str
    classes: Sequence[str]
    objective: ClassLoss = CROSS_ENTROPY
    kind: ClassVar[str] = "segmentation"
    unit: ClassVar[str] = MIOU
    scale: ClassVar[float] = 100.0

    @property
    def num_outputs(self) -> int:
        """One logit per class."""
        return len(self.classes)

    @property
    def parts(self) -> Sequence[str]:
        """The classes."""
        return self.classes

    def loss(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum of the losses. `output`: (B, C, H, W); `target`: (B, H, W) class or UNLABELLED."""
        target_BHW = target.long()
        labelled = target_BHW != UNLABELLED
        if self.objective.is_plain:  # In less memory.
            losses = F.cross_entropy(widened(output), target_BHW, ignore_index=UNLABELLED, reduction="sum")
        else:
            losses = self.objective(output.movedim(1, -1), target_BHW.where(labelled, 0)).where(labelled, 0).sum()
        return losses, labelled.sum()

    def measure(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return each class's pixels in the intersection and in the union of answer and label: (C,) and (C,).

        As in Cityscapes, the ratio is that of all images together, not a mean over images. A class that occurs in
        neither is left out of the mean; unlabelled pixels do not count. Shapes as for `loss`.
        """
        labelled = target != UNLABELLED
        label_N, answer_N = target[labelled].long(), output.argmax(dim=1)[labelled]
        both_C, labels_C, answers_C = (
            torch.bincount(found_N, minlength=len(self.classes)).double()
            for found_N in (label_N[label_N == answer_N], label_N, answer_N)
        )
        return both_C, labels_C + answers_C - both_C

    def predict(self, output: Tensor) -> Tensor:
        """Return the probabilities of the classes: (B, H, W, C)."""
        return widened(output).softmax(dim=1).movedim(1, -1)


@dataclass(frozen=True)
class DenseRegression:
    """C numbers per pixel. Loss by default, and measure: the absolute error (Sener & Koltun 2018, section 5.3)."""

    name: str
    num_outputs: int
    unit: str = SPREAD
    scale: float = 1.0
    objective: NumberLoss = ABSOLUTE
    kind: ClassVar[str] = "dense_regression"
    parts: ClassVar[tuple[str, ...]] = ()

    def loss(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum of the losses. `output`: (B, C, H, W); `target`: (B, H, W, C) number or NaN."""
        residual, labelled = _residual(output.permute(0, 2, 3, 1), target)
        return self.objective(residual).sum(), labelled.sum()

    def measure(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum of the absolute errors. Shapes as for `loss`."""
        residual, labelled = _residual(output.permute(0, 2, 3, 1), target)
        return residual.abs().sum(dtype=torch.float64), labelled.sum()

    def predict(self, output: Tensor) -> Tensor:
        """Return the standardised numbers: (B, H, W, C)."""
        return widened(output).permute(0, 2, 3, 1)


def labelled_samples(target: Tensor) -> Tensor:
    """Return which samples have a label of a task, or a pixel that has one: bool, (B,)."""
    labelled = ~target.isnan() if target.is_floating_point() else target != _no_label(target)
    return labelled.flatten(1).any(dim=1) if labelled.dim() > 1 else labelled


def without_labels(target: Tensor) -> Tensor:
    """Return a target of the same shape without any label."""
    return torch.full_like(target, torch.nan if target.is_floating_point() else _no_label(target))


def _no_label(target: Tensor) -> int:
    return UNLABELLED if target.dtype == torch.uint8 else MISSING


def task_losses(
    tasks: Sequence[Task], outputs: Tensor | Sequence[Tensor], targets: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return each task's loss, summed over this rank's labelled samples, and the number of those: (T,) and (T,).

    Args:
        tasks: in the order of the outputs.
        outputs: of `MultiTaskModel`: (B, T, C) for stacked heads, or one output per task.
        targets: the target of each task by its name, on any device.
    """
    if isinstance(outputs, Tensor):
        stacked = [task for task in tasks if isinstance(task, Classification | Regression)]
        if any(task.objective != stacked[0].objective for task in stacked):
            return _stacked_losses(stacked, outputs, targets)
    return _applied(lambda task, output, target: task.loss(output, target), tasks, outputs, targets)


def task_measures(
    tasks: Sequence[Task], outputs: Tensor | Sequence[Tensor], targets: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the sums and counts of the measures of all tasks, one task after another: (N,) and (N,).

    N is T, or more if tasks have parts. Arguments as for `task_losses`.
    """
    return _applied(lambda task, output, target: task.measure(output, target), tasks, outputs, targets)


def ratios(tasks: Sequence[Task], sums_N: Tensor, counts_N: Tensor) -> list[list[float | None]]:
    """Return the ratios of each task's parts, in the task's unit; None where the count is zero."""
    found = iter(zip(sums_N.tolist(), counts_N.tolist(), strict=True))
    each = [list(itertools.islice(found, len(task.parts) or 1)) for task in tasks]
    return [
        [task.scale * total / count if count else None for total, count in pairs]
        for task, pairs in zip(tasks, each, strict=True)
    ]


def _stacked_losses(
    tasks: Sequence[Classification | Regression], outputs_BTC: Tensor, targets: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the losses and counts of stacked tasks whose losses differ."""
    target_BT = torch.stack([targets[task.name] for task in tasks], dim=1).to(outputs_BTC.device, non_blocking=True)
    sums_T, counts_T = outputs_BTC.new_zeros(0), outputs_BTC.new_zeros(0)
    order: list[int] = []
    for places, objective in grouped([task.objective for task in tasks], tasks[0].num_outputs):
        together = replace(tasks[places[0]], objective=objective)  # type: ignore[arg-type]  # It is of the task's kind.
        sums, counts = together.loss(outputs_BTC[:, places], target_BT[:, places])
        sums_T, counts_T, order = torch.cat([sums_T, sums]), torch.cat([counts_T, counts]), order + places
    places_T = torch.tensor(order).argsort().to(outputs_BTC.device)
    return sums_T[places_T], counts_T[places_T]


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


def _residual(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return output minus target, 0 where the target is NaN; and where it is not NaN."""
    labelled = ~target.isnan()
    output = widened(output)
    return (output - target.to(output.dtype).where(labelled, 0)).where(labelled, 0), labelled
