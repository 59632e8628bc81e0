"""Evaluation: every sample of a split of every source exactly once, whatever the number of ranks.

Losses, errors and the metrics of tasks with a target for every pixel are sums and counts over all ranks. The other
metrics are not: rank 0 collects all predictions for them, and computes them once.

Shapes: T tasks, N ratios of all tasks (`models.ratios`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import fmean
from typing import TypeVar

import torch
from torch import Tensor, nn

from models import Task, ratios, task_losses, task_measures
from trainer.data.reading.batch import Batch
from trainer.data.reading.order import PADDING
from trainer.observe.predictions import Seen
from trainer.runtime.collectives import Runtime
from trainer.training.collect import Collector, Predicted, has_one_target, together
from trainer.training.task_metrics import Found, pixel_metrics, sample_metrics

Value = TypeVar("Value")


@dataclass(frozen=True)
class Evaluation:
    """The means over all labelled samples of all ranks; None for a task without any.

    Attributes:
        errors: task name -> error in the task's unit; a score, where its unit is one (models.tasks.MIOU).
        units: task name -> what its error is counted in, such as "%".
        by_class: segmentation's name -> class -> intersection over union in percent, of which the mean is its score;
            None for a class that is in no label and no prediction.
        losses: task name -> loss.
        metrics: task name -> metric -> value, see trainer/config/metrics.py; None where it is not defined.
        samples: their number, labelled or not.
        predicted: predictions and labels of tasks with one target a sample; None on every rank but 0, and where they
            are too many.
        too_large: a sentence where they are.
        by_source: name -> the same of one of several sources, for the tasks that have labels there.
    """

    errors: dict[str, float | None]
    units: dict[str, str]
    by_class: dict[str, dict[str, float | None]]
    losses: dict[str, float | None]
    metrics: dict[str, dict[str, float | None]]
    samples: int
    predicted: Predicted | None
    too_large: str | None
    by_source: Mapping[str, "Evaluation"] = field(default_factory=dict)

    def labelled(self) -> "Evaluation":
        """Return the same without the tasks that have no label."""

        def known(values: Mapping[str, Value]) -> dict[str, Value]:
            return {name: value for name, value in values.items() if self.losses[name] is not None}

        return replace(
            self,
            errors=known(self.errors),
            units=known(self.units),
            by_class=known(self.by_class),
            losses=known(self.losses),
            metrics=known(self.metrics),
        )


@torch.no_grad()
def evaluate(
    model: nn.Module,
    sources: Mapping[str, Iterable[Batch]],
    tasks: Sequence[Task],
    metrics: Mapping[str, Sequence[str]],
    to_input: Callable[[str, Tensor], Tensor],
    runtime: Runtime,
    look: Callable[[Seen], None] | None = None,
) -> Evaluation:
    """Run a model over the batches of every source. Collective.

    Args:
        model: an engine's predictor, or a bare model; the training mode of each of its modules is restored.
        sources: name -> this rank's part of the split; padding and unlabelled slots have missing targets and are not
            counted.
        tasks: what to measure.
        metrics: task name -> names of its metrics.
        to_input: turns the inputs of a source, by its name, into the model's, on its device.
        runtime: the processes.
        look: called with this rank's first batch and the model's outputs.

    Returns:
        What was found of all samples together, and of those of each source, where there are several.

    Raises:
        UserError: a sample cannot be used; the same on every rank.
    """
    was_training = [(module, module.training) for module in model.modules()]
    model.eval()
    counted = []
    for name, batches in sources.items():
        counted.append(_count(model, batches, tasks, partial(to_input, name), runtime, look))
        look = None
    for module, training in was_training:
        module.training = training
    together = _together(counted)
    of_sources = [] if len(counted) == 1 else counted
    # Rank 0 alone has the predictions.
    of_all, *by_source = runtime.on_main(lambda: [_metrics(each, tasks, metrics) for each in (together, *of_sources)])
    return replace(
        _evaluation(together, tasks, of_all),
        by_source={
            name: _evaluation(each, tasks, found).labelled()
            for name, each, found in zip(sources, of_sources, by_source, strict=False)
        },
    )


@dataclass(frozen=True)
class _Counted:
    """The sums over the samples of a source, on all ranks."""

    sums: Sequence[Tensor]
    """The sums of each task's measure, one for each of its ratios."""
    counts: Sequence[Tensor]
    losses_T: Tensor
    labelled_T: Tensor
    samples: int
    predicted: Predicted | None
    too_large: str | None


def _count(
    model: nn.Module,
    batches: Iterable[Batch],
    tasks: Sequence[Task],
    to_input: Callable[[Tensor], Tensor],
    runtime: Runtime,
    look: Callable[[Seen], None] | None,
) -> _Counted:
    num_ratios = [len(task.parts) or 1 for task in tasks]
    sizes = [sum(num_ratios), sum(num_ratios), len(tasks), len(tasks), 1]
    totals = torch.zeros(sum(sizes), dtype=torch.float64, device=runtime.device)
    collector = Collector(tasks, runtime.world_size)
    remaining = iter(batches)
    while True:
        # For each batch anew: a sharded model communicates, and would wait for a rank whose data has failed.
        with runtime.raise_together():
            batch = next(remaining, None)
        if batch is None:
            break
        outputs = model(to_input(batch.only_inputs))
        if look is not None:
            look(Seen(tasks, batch.only_inputs, batch.targets, outputs))
            look = None
        measured = *task_measures(tasks, outputs, batch.targets), *task_losses(tasks, outputs, batch.targets)
        totals[:-1] += torch.cat([each.double() for each in measured])
        totals[-1] += (batch.sample_ids_B != PADDING).sum()
        collector.add(batch.sample_ids_B, outputs, batch.targets)
    sums_N, counts_N, losses_T, labelled_T, samples = runtime.sum(totals).cpu().split(sizes)
    return _Counted(
        sums=sums_N.split(num_ratios),
        counts=counts_N.split(num_ratios),
        losses_T=losses_T,
        labelled_T=labelled_T,
        samples=int(samples),
        predicted=collector.gather(runtime),
        too_large=collector.too_large,
    )


def _together(counted: Sequence[_Counted]) -> _Counted:
    """Add up the sources."""
    if len(counted) == 1:
        return counted[0]
    return _Counted(
        sums=[torch.stack(each).sum(0) for each in zip(*(one.sums for one in counted), strict=True)],
        counts=[torch.stack(each).sum(0) for each in zip(*(one.counts for one in counted), strict=True)],
        losses_T=torch.stack([one.losses_T for one in counted]).sum(0),
        labelled_T=torch.stack([one.labelled_T for one in counted]).sum(0),
        samples=sum(one.samples for one in counted),
        predicted=together([one.predicted for one in counted]),
        too_large=next((one.too_large for one in counted if one.too_large), None),
    )


def _metrics(counted: _Counted, tasks: Sequence[Task], metrics: Mapping[str, Sequence[str]]) -> dict[str, Found]:
    of_samples = sample_metrics([task for task in tasks if has_one_target(task)], counted.predicted, metrics)
    return {
        task.name: of_samples[task.name]
        if has_one_target(task)
        else pixel_metrics(task, sums_N, counts_N, metrics[task.name])
        for task, sums_N, counts_N in zip(tasks, counted.sums, counted.counts, strict=True)
    }


def _evaluation(counted: _Counted, tasks: Sequence[Task], metrics: dict[str, Found]) -> Evaluation:
    names = [task.name for task in tasks]
    sums_N, counts_N = torch.cat(list(counted.sums)), torch.cat(list(counted.counts))
    found = dict(zip(names, ratios(tasks, sums_N, counts_N), strict=True))
    known = {name: [ratio for ratio in parts if ratio is not None] for name, parts in found.items()}
    losses = zip(names, counted.losses_T.tolist(), counted.labelled_T.tolist(), strict=True)
    return Evaluation(
        errors={name: fmean(parts) if parts else None for name, parts in known.items()},
        units={task.name: task.unit for task in tasks},
        by_class={task.name: dict(zip(task.parts, found[task.name], strict=True)) for task in tasks if task.parts},
        losses={name: loss / count if count else None for name, loss, count in losses},
        metrics=metrics,
        samples=counted.samples,
        predicted=counted.predicted,
        too_large=counted.too_large,
    )
