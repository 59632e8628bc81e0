"""Intervals of metrics by the percentile bootstrap (Efron & Tibshirani 1993, chapter 13).

Shapes: N samples of a split.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from models import Task
from trainer.training.collect import Predicted, has_one_target
from trainer.training.task_metrics import sample_metrics

PERCENTILES = (2.5, 97.5)
SEED = 0

Intervals = dict[str, dict[str, tuple[float, float] | None]]
"""Task -> metric -> lower and upper end of its 95 % interval; None where it is not defined."""


def intervals(
    tasks: Sequence[Task], predicted: Predicted, metrics: Mapping[str, Sequence[str]], resamples: int
) -> Intervals:
    """Return 95 % intervals for each metric of the tasks with one target a sample.

    Every resample draws N samples with replacement, the same ones for all tasks. Those in which a metric is not
    defined, such as AUROC with a single class, do not count.

    Args:
        tasks: of the run.
        predicted: of the split.
        metrics: task name -> names of its metrics.
        resamples: their number.
    """
    rng, num_samples = np.random.default_rng(SEED), len(predicted.sample_ids_N)
    kept = [task for task in tasks if has_one_target(task)]
    found: dict[str, dict[str, list[float]]] = {task.name: {name: [] for name in metrics[task.name]} for task in kept}
    for _ in range(resamples):
        resample = predicted.at(rng.integers(num_samples, size=num_samples))
        for task, values in sample_metrics(kept, resample, metrics).items():
            for name, value in values.items():
                if value is not None:
                    found[task][name].append(value)
    return {
        task: {name: _ends(values) if values else None for name, values in each.items()} for task, each in found.items()
    }


def _ends(values: Sequence[float]) -> tuple[float, float]:
    low, high = np.percentile(values, PERCENTILES).tolist()
    return low, high
