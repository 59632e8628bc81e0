"""Evaluation: every sample of a split exactly once, whatever the number of ranks.

Shapes: T tasks.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models import Task, task_errors, task_losses
from trainer.data.reading.loader import Batch
from trainer.data.reading.order import PADDING
from trainer.runtime.setup import Runtime


@dataclass(frozen=True)
class Evaluation:
    """Means over all labelled samples of all ranks; None for a task without any.

    Attributes:
        errors: task name -> error in the task's unit.
        units: task name -> what its error is counted in, such as "%".
        losses: task name -> loss.
        samples: how many there were, labelled or not.
    """

    errors: dict[str, float | None]
    units: dict[str, str]
    losses: dict[str, float | None]
    samples: int


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    tasks: Sequence[Task],
    to_input: Callable[[Tensor], Tensor],
    runtime: Runtime,
) -> Evaluation:
    """Run a model over `batches`. Collective.

    Args:
        model: an engine's predictor, or a bare model; the training mode of each of its modules is restored.
        batches: this rank's share; padding and unlabelled slots have missing targets and count for nothing.
        tasks: what to measure.
        to_input: what the loader gives -> the model's input on its device.
        runtime: the processes.

    Raises:
        UserError: a sample cannot be used, on any rank.
    """
    totals_T5 = torch.zeros(len(tasks), 5, dtype=torch.float64, device=runtime.device)
    was_training = [(module, module.training) for module in model.modules()]
    model.eval()
    remaining = iter(batches)
    while True:
        # Batch by batch: a model in shards communicates, and would wait for a rank that has stopped over its data.
        with runtime.together():
            batch = next(remaining, None)
        if batch is None:
            break
        outputs = model(to_input(batch.inputs))
        measured = *task_errors(tasks, outputs, batch.targets), *task_losses(tasks, outputs, batch.targets)
        totals_T5[:, :4] += torch.stack([column_T.double() for column_T in measured], dim=1)
        totals_T5[:, 4] += (batch.sample_ids_B != PADDING).sum()
    for module, training in was_training:
        module.training = training
    totals_T5 = runtime.sum(totals_T5).cpu()
    rows = {task.name: row_5.tolist() for task, row_5 in zip(tasks, totals_T5, strict=True)}
    return Evaluation(
        errors={name: error / count if count else None for name, (error, count, *_) in rows.items()},
        units={task.name: task.unit for task in tasks},
        losses={name: loss / count if count else None for name, (_, _, loss, count, _) in rows.items()},
        samples=int(totals_T5[0, 4]),
    )
