"""Collect what a model says of every sample of a split from all ranks on rank 0.

Tasks with targets for every pixel are left out: their metrics follow from counts, and their predictions are too many.

Shapes: B samples of a batch, N samples of the split, T tasks, C numbers that a task predicts, W those of all tasks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

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
        widths: task -> C, in the order of the rows below.
        labels_TN: class indices with MISSING, or standardised numbers with NaN; float32.
        answers_WN: probabilities of the classes, or one standardised number, of one task after another; float32.
    """

    sample_ids_N: np.ndarray
    widths: Mapping[str, int]
    labels_TN: np.ndarray
    answers_WN: np.ndarray

    def of(self, tasks: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return the answers and the labels of some tasks of the same C: (C, T, N) and (T, N)."""
        places = {name: place for place, name in enumerate(self.widths)}
        starts = dict(zip(self.widths, np.cumsum([0, *self.widths.values()]).tolist(), strict=False))
        rows_CT = np.arange(self.widths[tasks[0]])[:, None] + [starts[name] for name in tasks]
        return self.answers_WN[rows_CT], self.labels_TN[[places[name] for name in tasks]]

    def at(self, samples: np.ndarray) -> "Predicted":
        """Return the same of some samples, by their places in it."""
        return replace(
            self,
            sample_ids_N=self.sample_ids_N[samples],
            labels_TN=self.labels_TN[:, samples],
            answers_WN=self.answers_WN[:, samples],
        )


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
        self._labels: list[list[Tensor]] = []
        """A list for each batch: a tensor for each task that is kept."""
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
        self._labels.append([targets[task.name] for task in self._kept])
        self._outputs.append(kept)
        numbers = len(self._kept) * len(sample_ids_B) + sum(output.numel() for output in kept)
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
        # All batches, and the labels of all tasks, at once: a few calls in place of a few for each of them.
        outputs = [torch.cat(batches) for batches in zip(*self._outputs, strict=True)]
        labels = torch.cat([batch[place] for place in range(len(self._kept)) for batch in self._labels])
        if len(outputs) < len(self._kept):
            answers_BTC = self._tasks[0].predict(outputs[0])
            answers, widths = [answers_BTC.flatten(1)], [answers_BTC.shape[2]] * len(self._tasks)
        else:
            answers = [task.predict(output).flatten(1) for task, output in zip(self._kept, outputs, strict=True)]
            widths = [answer.shape[1] for answer in answers]
        ids = runtime.gather_rows(torch.cat(self._ids))
        labels_BT = runtime.gather_rows(labels.float().view(len(self._kept), -1).T)
        rows_BW = runtime.gather_rows((answers[0] if len(answers) == 1 else torch.cat(answers, dim=1)).float())
        if ids is None or labels_BT is None or rows_BW is None:
            return None
        ids_B = ids.numpy()
        order = np.argsort(ids_B)
        order = order[ids_B[order] != PADDING]
        return Predicted(
            sample_ids_N=ids_B[order],
            widths=dict(zip([task.name for task in self._kept], widths, strict=True)),
            labels_TN=labels_BT.numpy().T[:, order],
            answers_WN=np.ascontiguousarray(rows_BW.numpy()[order].T),
        )


def together(parts: Sequence[Predicted | None]) -> Predicted | None:
    """Join the predictions of several sources, one source after the other; None where one of them has none."""
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    return Predicted(
        sample_ids_N=np.concatenate([part.sample_ids_N for part in known]),
        widths=known[0].widths,
        labels_TN=np.concatenate([part.labels_TN for part in known], axis=1),
        answers_WN=np.concatenate([part.answers_WN for part in known], axis=1),
    )


def has_one_target(task: Task) -> bool:
    """Return whether a task has one target a sample, and so predictions that can be collected."""
    return isinstance(task, Classification | Regression)
