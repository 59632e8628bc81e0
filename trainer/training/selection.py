"""Choose the best evaluation of a run, and end a run that no longer finds a better one.

The choice is a pure function of the evaluations so far, kept in the checkpoint: a run that goes on chooses as one that
was never stopped.
"""

from collections.abc import Mapping, Sequence
from math import isfinite
from statistics import fmean

from models import Task
from trainer.config.metrics import METRICS
from trainer.config.sections.train import SelectConfig
from trainer.data.format.manifest import Manifest
from trainer.errors import UserError, did_you_mean
from trainer.observe.units import Choice, best_in, by_unit, shortfall
from trainer.training.evaluate import Evaluation
from trainer.training.state import SelectionState

MEAN, WORST = "mean", "worst"
ERROR, LOSS = "error", "loss"
IN_UNITS = (ERROR, "mae", "rmse")
"""Metrics in the units of the tasks, whose mean over several units would mean nothing."""


def eval_split_of(asked: str | None, manifests: Sequence[Manifest]) -> str:
    """Return the split of a new run's evaluations: the one asked for, else val where all data has one, else test.

    Raises:
        UserError: a data folder has no such split.
    """
    split = asked or ("val" if all("val" in manifest.splits for manifest in manifests) else "test")
    for manifest in manifests:
        manifest.split(split)
    return split


def check_select(
    config: SelectConfig,
    asked_split: str | None,
    split: str,
    tasks: Sequence[Task],
    metrics: Mapping[str, Sequence[str]],
) -> None:
    """Refuse a choice that cannot be made, or that would spoil the test split without the user's word.

    Args:
        config: how to choose.
        asked_split: train.eval_split of the configuration.
        split: of the evaluations.
        tasks: of the run.
        metrics: task name -> names of its metrics.

    Raises:
        UserError: saying what to type.
    """
    names = [task.name for task in tasks]
    names_of_metrics = [ERROR, LOSS, *(name for each in metrics.values() for name in each)]
    if config.metric not in names_of_metrics:
        known = ", ".join(dict.fromkeys(names_of_metrics))
        raise UserError(
            f"train.select.metric={config.metric}: no task of this run has it"
            f"{did_you_mean(config.metric, names_of_metrics)} Known here: {known}"
        )
    if config.over not in (MEAN, WORST, *names):
        raise UserError(
            f"train.select.over={config.over}: expected {MEAN}, {WORST} or a task{did_you_mean(config.over, names)}"
        )
    modes = {"max" if _best(config.metric, task.unit) is max else "min" for task in tasks}
    if config.mode is not None and modes != {config.mode}:
        raise UserError(
            f"train.select.mode={config.mode} with metric {config.metric}, of which {' or '.join(sorted(modes))} is "
            "better: leave the mode out"
        )
    if split == "test" and asked_split is None:
        raise UserError(
            "train.select would choose a checkpoint by the test split, since the data has no split val; the test "
            "errors would then look better than they are. Give the data a split val, or leave train.select out. To "
            "choose by the test split all the same, type train.eval_split=test"
        )


def rule_of(config: SelectConfig, split: str) -> str:
    """Return the rule of the choice in words: best mean error on val."""
    if config.over in (MEAN, WORST):
        return f"best {config.over} {config.metric} on {split}"
    return f"best {config.metric} of {config.over} on {split}"


def select(
    before: SelectionState | None, step: int, found: Evaluation, config: SelectConfig, split: str
) -> SelectionState:
    """Return the choice after one more evaluation. Of equal evaluations the first one is the best.

    Args:
        before: the choice so far; None: there was no evaluation.
        step: optimizer steps done.
        found: the evaluation after them.
        config: how to choose.
        split: that was evaluated.

    Raises:
        UserError: nothing that decides was measured.
    """
    rule = rule_of(config, split)
    if before is None or before.rule != rule:
        before = SelectionState(rule=rule, step=None, value=None, num_since=0, first={})
    values, first = _by_task(found, config), before.first
    if config.metric in IN_UNITS and len(by_unit(values, found.units)) > 1:
        # Metres and percents have no mean: each task counts by its share of its own first value.
        first = {task: value for task, value in values.items() if value and isfinite(value)} | first
        values = {task: value / first.get(task, 1.0) for task, value in values.items()}
    value = max(values.values()) if config.over == WORST else fmean(values.values())
    is_better = all(map(isfinite, values.values())) and (before.value is None or value < before.value)
    changed = {"step": step, "value": value, "num_since": 0} if is_better else {"num_since": before.num_since + 1}
    return before.model_copy(update={"first": first, **changed})


def is_patience_over(selection: SelectionState | None, patience: int | None) -> bool:
    """Return whether a run is to end, since `patience` evaluations in a row were no better than the best one."""
    return patience is not None and selection is not None and selection.num_since >= patience


def _by_task(found: Evaluation, config: SelectConfig) -> dict[str, float]:
    """Return the value of each task that counts, such that lower is better."""
    sign = -1 if config.metric in METRICS and METRICS[config.metric].best is max else 1
    known = {task: sign * value for task, value in _measured(found, config.metric).items() if value is not None}
    counted = known if config.over in (MEAN, WORST) else {task: known[task] for task in known if task == config.over}
    if not counted:
        raise UserError(
            f"train.select: {config.metric} of {config.over} was not measured, as the evaluated split has no such label"
        )
    return counted


def _measured(found: Evaluation, metric: str) -> Mapping[str, float | None]:
    if metric == LOSS:
        return found.losses
    if metric == ERROR:
        known = {task: error for task, error in found.errors.items() if error is not None}
        return {task: shortfall(error, found.units[task]) for task, error in known.items()}
    return {task: values.get(metric) for task, values in found.metrics.items()}


def _best(metric: str, unit: str) -> Choice:
    """Return `max` if more of the metric is better for tasks of this unit, else `min`."""
    if metric == ERROR:
        return best_in(unit)
    return min if metric == LOSS else METRICS[metric].best
