"""The results of a study: the methods side by side, over seeds, against a baseline.

Shapes: M methods, S seeds, T tasks.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean
from typing import Any

import numpy as np

from trainer.config.metrics import METRICS
from trainer.errors import UserError
from trainer.observe.over_tasks import ByTask, changes, delta_m, mean_ranks
from trainer.observe.read_run import RunFolder
from trainer.observe.study.statistics import is_noise


@dataclass(frozen=True)
class Method:
    """What the runs of one method have reached and cost, a seed each.

    Attributes:
        name: of the method.
        metrics: of each seed, on the split that the study reports.
        seconds_S: training time of each seed; of a task alone, all its runs together. NaN: not recorded.
        mib_S: peak memory of a process, in MiB. NaN: not recorded.
        steps: of one run.
        chosen: key of the configuration -> the value that tuning has chosen.
    """

    name: str
    metrics: Sequence[ByTask]
    seconds_S: np.ndarray
    mib_S: np.ndarray
    steps: int
    chosen: Mapping[str, Any]

    def values(self, task: str, metric: str) -> np.ndarray:
        """Return a metric of a task, (S,); NaN where it is not defined."""
        return np.array([found.get(task, {}).get(metric) for found in self.metrics], dtype=float)


@dataclass(frozen=True)
class Results:
    """The methods of a study.

    Attributes:
        title: of the study.
        split: whose metrics they are.
        seeds: S of them.
        deciding: task -> the metric by which it is compared, of the tasks for which some run has it.
        left_out: the other tasks.
        grid: keys of the configuration that were tuned, and the values that were tried.
        methods: that are compared.
        baseline: what Δm is measured against: one of the methods, or `alone`.
        alone: each task trained alone; None if the study has no such runs.
        front: fixed weights on two tasks, in the order of the weights.
    """

    title: str
    split: str
    seeds: Sequence[int]
    deciding: Mapping[str, str]
    methods: Sequence[Method]
    baseline: Method
    alone: Method | None = None
    front: Sequence[Method] = ()
    left_out: Sequence[str] = ()
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the T tasks."""
        return tuple(self.deciding)

    @property
    def rows(self) -> list[Method]:
        """Return the methods, and the tasks alone before them."""
        return [*([self.alone] if self.alone else []), *self.methods]

    @cached_property
    def reference(self) -> ByTask:
        """The baseline's metrics, as means over its seeds."""
        found: dict[str, dict[str, float | None]] = {}
        for task, metric in self.deciding.items():
            values_S = self.baseline.values(task, metric)
            found[task] = {metric: None if np.isnan(values_S).any() else float(values_S.mean())}
        return found

    def changes(self, method: Method) -> np.ndarray:
        """Return Δm against the baseline's mean of all seeds, in percent, (S,); NaN where it is not defined."""

        def change(metrics: ByTask) -> float | None:
            is_whole = len(measured(self.deciding, [metrics])) == len(self.deciding)
            return delta_m(metrics, self.reference, self.deciding) if is_whole else None

        return np.array([change(metrics) for metrics in method.metrics], dtype=float)

    def task_changes(self, method: Method) -> np.ndarray:
        """Return by how many percent each task is better than the baseline's mean, (S, T); NaN: not defined."""
        found = [changes(metrics, self.reference, self.deciding) for metrics in method.metrics]
        return np.array([[each.get(task, np.nan) for task in self.tasks] for each in found])

    def scores(self, method: Method, task: str) -> np.ndarray:
        """Return the metric that decides, such that more is better, (S,)."""
        metric = self.deciding[task]
        return method.values(task, metric) * (1 if METRICS[metric].best is max else -1)

    @cached_property
    def ranks(self) -> np.ndarray:
        """The methods' mean ranks over the tasks, 1 for the best, (M, S); NaN where they share no task."""
        by_seed = zip(*(method.metrics for method in self.methods), strict=True)
        return np.array([mean_ranks(metrics, self.deciding) for metrics in by_seed], dtype=float).T

    @cached_property
    def mean_ranks(self) -> dict[str, float]:
        """Name of each method -> its `ranks`, as a mean over the seeds."""
        return dict(zip((method.name for method in self.methods), self.ranks.mean(axis=1).tolist(), strict=True))

    def like_the_best(self, scores: Mapping[str, np.ndarray]) -> set[str]:
        """Return the method whose mean score is the largest, and those that the seeds do not tell from it.

        Args:
            scores: name of each method -> its scores, (S,), the seeds in the same order.
        """
        known = {name: scores_S for name, scores_S in scores.items() if not np.isnan(scores_S).any()}
        if not known:
            return set()
        best_S = max(known.values(), key=lambda scores_S: float(scores_S.mean()))
        return {name for name, scores_S in known.items() if scores_S is best_S or is_noise(best_S - scores_S)}


def method_of(name: str, seeds: Sequence[Sequence[RunFolder]], chosen: Mapping[str, Any]) -> Method:
    """Return what complete runs have reached.

    Args:
        name: of the method.
        seeds: the runs of each seed: one, or one for each task.
        chosen: by tuning.
    """
    metrics = [{task: found for run in runs for task, found in _record(run)["metrics"].items()} for runs in seeds]
    seconds = [sum(run.latest("wall_seconds") or float("nan") for run in runs) for runs in seeds]
    mib = [max(run.latest("peak_memory_mib") or float("nan") for run in runs) for runs in seeds]
    steps = seeds[0][0].latest("steps")
    return Method(name, metrics, np.array(seconds, dtype=float), np.array(mib, dtype=float), steps, chosen)


def deciding_of(runs: Sequence[RunFolder]) -> dict[str, str]:
    """Return task -> the metric by which it is compared, of all tasks of the runs."""
    return {task: name for run in runs for task, name in _record(run).get("deciding", {}).items()}


def mean_changes(points: Sequence[Sequence[ByTask]], deciding: Mapping[str, str]) -> list[float]:
    """Return for each point of a grid by how many percent it is better than the mean of all points, over the tasks.

    A point with a metric that is not defined, since its numbers are infinite, say, is worse than all others.

    Args:
        points: the metrics of each point, a seed each.
        deciding: task -> the metric that counts.

    Returns:
        A number for each point; -inf for a point that lacks a metric.
    """
    counted = measured(deciding, [found for seeds in points for found in seeds])
    whole = [len(measured(counted, seeds, by=all)) == len(counted) for seeds in points]
    if not counted or not any(whole):
        return [-np.inf] * len(points)
    known = [found for seeds, is_whole in zip(points, whole, strict=True) if is_whole for found in seeds]
    mean = {task: {name: fmean(found[task][name] or 0.0 for found in known)} for task, name in counted.items()}
    return [
        fmean(delta_m(found, mean, counted) or 0.0 for found in seeds) if is_whole else -np.inf
        for seeds, is_whole in zip(points, whole, strict=True)
    ]


def measured(
    deciding: Mapping[str, str], found: Sequence[ByTask], by: Callable[[Iterable[bool]], bool] = any
) -> dict[str, str]:
    """Return the tasks whose metric is defined in any, or in all, of some evaluations.

    A metric that is defined in none, such as AUROC where all labels are of one class, tells nothing of the methods.
    """
    return {
        task: name
        for task, name in deciding.items()
        if by(metrics.get(task, {}).get(name) is not None for metrics in found)
    }


def metrics_on(run: RunFolder, split: str) -> Mapping[str, Any]:
    """Return the record of a split's evaluation that a run stands for.

    Raises:
        UserError: the run was not evaluated on it.
    """
    found = run.evaluated_on(split)
    if not found.get("metrics"):
        raise UserError(
            f"{run.path} has no metrics of the split {split}: its data lack the split, or its metrics.jsonl was "
            f"damaged. To train it anew, remove it: rm -r {run.path}"
        )
    return found


def _record(run: RunFolder) -> Mapping[str, Any]:
    return metrics_on(run, run.result.split)
