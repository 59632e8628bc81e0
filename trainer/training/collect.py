"""Collect what a model says of every sample of a split from all ranks on rank 0.

Tasks with targets for every pixel are left out: their metrics follow from counts, and their predictions are too many.

Shapes: B samples of a batch, N samples of the split, T tasks, C numbers that a task predicts, W = T + all C.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models import Classification, Regression, Task
from trainer.data.reading.order import PADDING
from trainer.runtime.collectives import Runtime

MAX_BYTES = 2 << 30
"""The most bytes of predictions, as float32, that rank 0 is given."""


@dataclass(frozen=True)
class Predicted:
    """Predictions and labels, in the order of the samples in the split.

    Attributes:
        sample_ids_N: of the samples, in the split of their source.
        answers: task -> probabilities of its classes, or standardised numbers as one column, (N, C) float32.
        labels: task -> class indices with MISSING, or standardised numbers with NaN, (N,) float32.
    """

    sample_ids_N: np.ndarray
    answers: Mapping[str, np.ndarray]
    labels: Mapping[str, np.ndarray]


class Collector:
    """Keep the outputs of this rank's batches on its device, until `gather`.

    Args:
        tasks: of the model, in the order of its outputs.
        world_size: how many ranks collect as much as this one.

    Attributes:
        too_large: why nothing is kept, once all ranks together would have more than MAX_BYTES; None before.
    """

    def __init__(self, tasks: Sequence[Task], world_size: int) -> None:
        self.too_large: str | None = None
        self._tasks = tasks
        self._world_size = world_size
        self._num_bytes = 0
        self._kept = [task for task in tasks if has_one_target(task)]
        self._ids: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._outputs: list[list[Tensor]] = []
        """A list for each batch: the one tensor of stacked heads, or a tensor for each task that is kept."""

    def add(self, sample_ids_B: Tensor, outputs: Tensor | Sequence[Tensor], targets: Mapping[str, Tensor]) -> None:
        """Keep the outputs and the labels of a batch."""
        if not self._kept or self.too_large:
            return
        if isinstance(outputs, Tensor):  # Of stacked heads, whose tasks are alike.
            kept = [outputs]
        else:
            kept = [output for task, output in zip(self._tasks, outputs, strict=True) if has_one_target(task)]
        self._ids.append(sample_ids_B)
        # For all tasks at once: a call for each of hundreds would take longer than what it does.
        self._labels.append(torch.stack([targets[task.name] for task in self._kept], dim=1))
        self._outputs.append(kept)
        numbers = self._labels[-1].numel() + sum(output.numel() for output in kept)
        self._num_bytes += numbers * torch.float32.itemsize * self._world_size
        if self._num_bytes > MAX_BYTES:
            self._ids, self._labels, self._outputs = [], [], []
            self.too_large = (
                f"the predictions for this split take more than {MAX_BYTES >> 30} GiB, which one process is to hold: "
                "metrics that need them are left out, and errors and losses are as always"
            )

    def gather(self, runtime: Runtime) -> Predicted | None:
        """Return the predictions of all ranks on rank 0, without padding. Collective.

        Every rank has added as many batches, of as many samples.

        Returns:
            None on the other ranks, where there are too many of them, and without tasks to keep them of.
        """
        if not self._ids:
            return None
        # Predictions of all batches at once: a few calls in place of a few for each batch.
        outputs = [torch.cat(batches) for batches in zip(*self._outputs, strict=True)]
        if len(outputs) < len(self._kept):
            answers_BTC = self._tasks[0].predict(outputs[0])
            answers, widths = [answers_BTC.flatten(1)], [answers_BTC.shape[2]] * len(self._tasks)
        else:
            answers = [task.predict(output).flatten(1) for task, output in zip(self._kept, outputs, strict=True)]
            widths = [answer.shape[1] for answer in answers]
        labels_BT = torch.cat(self._labels).to(answers[0].device)
        rows_BW = torch.cat([labels_BT.float(), *answers], dim=1).float()
        ids, rows = runtime.gather_rows(torch.cat(self._ids)), runtime.gather_rows(rows_BW)
        if ids is None or rows is None:
            return None
        ids_N = ids.numpy()
        order = np.argsort(ids_N, kind="stable")
        order = order[ids_N[order] != PADDING]
        labels_NT, *answers_NC = np.split(rows.numpy()[order], np.cumsum([len(self._kept), *widths[:-1]]), axis=1)
        names = [task.name for task in self._kept]
        return Predicted(
            sample_ids_N=ids_N[order],
            answers=dict(zip(names, answers_NC, strict=True)),
            labels=dict(zip(names, labels_NT.T, strict=True)),
        )


def together(parts: Sequence[Predicted | None]) -> Predicted | None:
    """Join the predictions of several sources, one source after the other; None where one of them has none."""
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    return Predicted(
        sample_ids_N=np.concatenate([part.sample_ids_N for part in known]),
        answers={task: np.concatenate([part.answers[task] for part in known]) for task in known[0].answers},
        labels={task: np.concatenate([part.labels[task] for part in known]) for task in known[0].labels},
    )


def has_one_target(task: Task) -> bool:
    """Return whether a task has one target a sample, and so predictions that can be collected."""
    return isinstance(task, Classification | Regression)
