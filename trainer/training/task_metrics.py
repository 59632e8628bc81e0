"""Metrics of tasks, from their predictions and labels, or from counts. trainer/config/metrics.py lists their names.

scikit-learn is not called: its import would take longer than many an evaluation, and so would its calls for each task.

Shapes: T tasks, N samples, or ratios of a task with a target for every pixel; C classes.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import groupby

import numpy as np
from torch import Tensor

from models import Classification, Task
from trainer.training.class_metrics import class_metrics
from trainer.training.collect import Predicted
from trainer.training.number_metrics import number_metrics

Found = dict[str, float | None]
"""Metric -> value; None where it is not defined."""

MAX_NUMBERS = 2**18
"""Predictions that are worked on at once: many for each of NumPy's calls, and few enough for the processor's cache."""


def sample_metrics(
    tasks: Sequence[Task], predicted: Predicted | None, names: Mapping[str, Sequence[str]]
) -> dict[str, Found]:
    """Return metrics of tasks with one target a sample; all None where predictions were not collected.

    Args:
        tasks: classifications and regressions.
        predicted: of these tasks, at least.
        names: task name -> names of its metrics.
    """
    if predicted is None:
        return {task.name: dict.fromkeys(names[task.name]) for task in tasks}

    def kind(task: Task) -> tuple[bool, int, tuple[str, ...]]:
        return isinstance(task, Classification), task.num_outputs, tuple(names[task.name])

    found: dict[str, Found] = {}
    for (is_classification, num_outputs, wanted), alike in groupby(sorted(tasks, key=kind), kind):
        waiting = list(alike)
        at_once = max(1, MAX_NUMBERS // max(1, num_outputs * len(predicted.sample_ids_N)))
        for start in range(0, len(waiting), at_once):
            part = waiting[start : start + at_once]
            answers_CTN, labels_TN = predicted.of([task.name for task in part])
            if is_classification:
                values = class_metrics(answers_CTN, labels_TN, wanted)
            else:
                scale_T1 = np.array([task.scale for task in part], dtype=np.float64)[:, None]
                values = number_metrics(scale_T1 * answers_CTN[0], scale_T1 * labels_TN, wanted)
            columns = [[_defined(value) for value in values[name].tolist()] for name in wanted]
            found |= {task.name: dict(zip(wanted, row, strict=True)) for task, *row in zip(part, *columns, strict=True)}
    return found


def pixel_metrics(task: Task, sums_N: Tensor, counts_N: Tensor, names: Sequence[str]) -> Found:
    """Return metrics of a task with a target for every pixel.

    Args:
        task: a segmentation or a dense regression.
        sums_N: of its measure, over all samples: of a segmentation, the pixels in the intersection of each class.
        counts_N: likewise: of a segmentation, the pixels in the union.
        names: of the metrics.
    """
    if not counts_N.any():
        return dict.fromkeys(names)
    ratio = float((sums_N[counts_N > 0] / counts_N[counts_N > 0]).mean())
    # Each labelled pixel is in the union of its label's class and of its answer's, which are one where it is right.
    pixels = float(counts_N.sum() + sums_N.sum()) / 2
    found = {"mae": task.scale * ratio, "miou": ratio, "pixel_accuracy": float(sums_N.sum()) / pixels}
    return {name: found[name] for name in names}


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else value
