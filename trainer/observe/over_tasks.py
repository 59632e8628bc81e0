"""Metrics over all tasks: mean and worst of one run, Δm against a baseline, and the mean rank among several runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from trainer.config.metrics import METRICS

ByTask = Mapping[str, Mapping[str, float | None]]
"""Task -> metric -> value; None where it is not defined."""


@dataclass(frozen=True)
class Over:
    """One metric over the tasks for which it is defined."""

    mean: float
    worst: float
    worst_task: str
    num_tasks: int


def over_tasks(metrics: ByTask) -> dict[str, Over]:
    """Return the mean and the worst of each metric, in the order of METRICS."""
    found: dict[str, Over] = {}
    for name, metric in METRICS.items():
        values = {task: value for task, each in metrics.items() if (value := each.get(name)) is not None}
        if values:
            worst = metric.worst(values.values())
            task = next(task for task, value in values.items() if value == worst)
            found[name] = Over(fmean(values.values()), worst, task, len(values))
    return found


def changes(metrics: ByTask, baseline: ByTask, deciding: Mapping[str, str]) -> dict[str, float]:
    """Return by how many percent each task's deciding metric is better than that of the baseline; worse: negative.

    Tasks are left out where either is not defined, or the baseline's is 0, of which nothing is a percentage.
    """
    found = {}
    for task, name in deciding.items():
        ours, theirs = metrics.get(task, {}).get(name), baseline.get(task, {}).get(name)
        if ours is not None and theirs:
            sign = 1 if METRICS[name].best is max else -1
            found[task] = sign * 100 * (ours - theirs) / abs(theirs)
    return found


def delta_m(metrics: ByTask, baseline: ByTask, deciding: Mapping[str, str]) -> float | None:
    """Return Δm, the mean over the tasks of `changes`, in percent (Maninis et al. 2019, arXiv 1904.08918, equation 4).

    None if no task has both metrics.
    """
    found = changes(metrics, baseline, deciding)
    return fmean(found.values()) if found else None


def mean_ranks(runs: Sequence[ByTask], deciding: Mapping[str, str]) -> list[float | None]:
    """Return each run's rank among the runs, 1 for the best, as a mean over the tasks that all runs have.

    Equal runs share the mean of their ranks. None if the runs have no task in common.
    """
    ranks: list[list[float]] = [[] for _ in runs]
    for task, name in deciding.items():
        values = [run.get(task, {}).get(name) for run in runs]
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            continue
        sign = -1 if METRICS[name].best is max else 1
        for place, value in enumerate(known):
            better = sum(sign * other < sign * value for other in known)
            equal = sum(other == value for other in known)
            ranks[place].append(better + (equal + 1) / 2)
    return [fmean(each) if each else None for each in ranks]
