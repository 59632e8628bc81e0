"""Evaluation: every sample of a split exactly once, whatever the number of ranks.

Losses, errors and the metrics of tasks with a target for every pixel are sums and counts over all ranks. The other
metrics are not: rank 0 collects all predictions for them, and computes them once.

Shapes: T tasks, N ratios of all tasks (`models.ratios`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor, nn

from models import Task, ratios, task_losses, task_measures
from trainer.data.reading.loader import Batch
from trainer.data.reading.order import PADDING
from trainer.observe.predictions import Seen
from trainer.runtime.collectives import Runtime
from trainer.training.collect import Collector, Predicted, has_one_target
from trainer.training.task_metrics import Found, pixel_metrics, sample_metrics


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
    """

    errors: dict[str, float | None]
    units: dict[str, str]
    by_class: dict[str, dict[str, float | None]]
    losses: dict[str, float | None]
    metrics: dict[str, dict[str, float | None]]
    samples: int
    predicted: Predicted | None
    too_large: str | None


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    tasks: Sequence[Task],
    metrics: Mapping[str, Sequence[str]],
    to_input: Callable[[Tensor], Tensor],
    runtime: Runtime,
    look: Callable[[Seen], None] | None = None,
) -> Evaluation:
    """Run a model over `batches`. Collective.

    Args:
        model: an engine's predictor, or a bare model; the training mode of each of its modules is restored.
        batches: this rank's part of the split; padding and unlabelled slots have missing targets and are not counted.
        tasks: what to measure.
        metrics: task name -> names of its metrics.
        to_input: turns the loader's inputs into the model's, on its device.
        runtime: the processes.
        look: called with this rank's first batch and the model's outputs.

    Raises:
        UserError: a sample cannot be used; the same on every rank.
    """
    num_ratios = [len(task.parts) or 1 for task in tasks]
    sizes = [sum(num_ratios), sum(num_ratios), len(tasks), len(tasks), 1]
    totals = torch.zeros(sum(sizes), dtype=torch.float64, device=runtime.device)
    collector = Collector(tasks, runtime.world_size)
    was_training = [(module, module.training) for module in model.modules()]
    model.eval()
    remaining = iter(batches)
    while True:
        # For each batch anew: a sharded model communicates, and would wait for a rank whose data has failed.
        with runtime.raise_together():
            batch = next(remaining, None)
        if batch is None:
            break
        outputs = model(to_input(batch.inputs))
        if look is not None:
            look(Seen(tasks, batch.inputs, batch.targets, outputs))
            look = None
        measured = *task_measures(tasks, outputs, batch.targets), *task_losses(tasks, outputs, batch.targets)
        totals[:-1] += torch.cat([each.double() for each in measured])
        totals[-1] += (batch.sample_ids_B != PADDING).sum()
        collector.add(batch.sample_ids_B, outputs, batch.targets)
    for module, training in was_training:
        module.training = training
    sums_N, counts_N, losses_T, labelled_T, samples = runtime.sum(totals).cpu().split(sizes)
    names = [task.name for task in tasks]
    found = dict(zip(names, ratios(tasks, sums_N, counts_N), strict=True))
    known = {name: [ratio for ratio in parts if ratio is not None] for name, parts in found.items()}
    losses = zip(tasks, losses_T.tolist(), labelled_T.tolist(), strict=True)
    predicted = collector.gather(runtime)
    counted = dict(zip(names, zip(sums_N.split(num_ratios), counts_N.split(num_ratios), strict=True), strict=True))

    def measured_on_main() -> dict[str, Found]:
        return {
            task.name: sample_metrics(task, predicted, metrics[task.name])
            if has_one_target(task)
            else pixel_metrics(task, *counted[task.name], metrics[task.name])
            for task in tasks
        }

    return Evaluation(
        errors={name: fmean(parts) if parts else None for name, parts in known.items()},
        units={task.name: task.unit for task in tasks},
        by_class={task.name: dict(zip(task.parts, found[task.name], strict=True)) for task in tasks if task.parts},
        losses={task.name: loss / count if count else None for task, loss, count in losses},
        metrics=runtime.on_main(measured_on_main),
        samples=int(samples),
        predicted=predicted,
        too_large=collector.too_large,
    )
