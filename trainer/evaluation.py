"""Evaluation: every sample of a split exactly once, whatever the number of ranks.

Shapes: T tasks.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models import Task, task_errors, task_losses
from trainer.data.loader import Batch
from trainer.runtime.setup import Runtime


@dataclass(frozen=True)
class Evaluation:
    """Means over all labelled samples of all ranks; None for a task without any.

    Attributes:
        errors: task name -> error in the task's unit (percent for classification).
        losses: task name -> loss.
        samples: labelled samples of the task that has most.
    """

    errors: dict[str, float | None]
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
    """Run the bare model over `batches`. Collective: one reduction, at the end.

    Args:
        model: the unwrapped model; its training mode is restored.
        batches: this rank's share; padding and unlabelled slots have missing targets and count for nothing.
        tasks: what to measure.
        to_input: uint8 images -> the model's input on its device.
        runtime: the processes.

    Raises:
        UserError: a sample cannot be used, on any rank.
    """
    totals_T4 = torch.zeros(len(tasks), 4, dtype=torch.float64, device=runtime.device)
    was_training = model.training
    model.eval()
    with runtime.together():
        for batch in batches:
            outputs = model(to_input(batch.images_BHWC))
            measured = *task_errors(tasks, outputs, batch.targets), *task_losses(tasks, outputs, batch.targets)
            totals_T4 += torch.stack([column_T.double() for column_T in measured], dim=1)
    model.train(was_training)
    totals_T4 = runtime.sum(totals_T4).cpu()
    rows = {task.name: row_4.tolist() for task, row_4 in zip(tasks, totals_T4, strict=True)}
    return Evaluation(
        errors={name: error / count if count else None for name, (error, count, _, _) in rows.items()},
        losses={name: loss / count if count else None for name, (_, _, loss, count) in rows.items()},
        samples=int(totals_T4[:, 1].max()),
    )
