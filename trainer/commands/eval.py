"""`paretrain eval`: print the errors and metrics of a checkpoint."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from models import Task
from trainer.commands.evaluated import Evaluated, evaluate_checkpoint
from trainer.config.metrics import METRICS
from trainer.errors import UserError
from trainer.observe.over_tasks import delta_m, over_tasks
from trainer.observe.read_run import read_run
from trainer.observe.units import PERCENT, with_unit
from trainer.terminal import Terminal
from trainer.training.bootstrap import Intervals, intervals
from trainer.training.evaluate import Evaluation
from trainer.training.records import by_source

NONE = "-"
TASK_WIDTH = 30
"""Longer names of tasks go over several lines."""

NARROW = {
    "average_precision": "average\nprecis.",
    "calibration_error": "calibr.\nerror",
    "majority_accuracy": "major-\nity",
}
"""Headings that let the table fit 80 columns."""

_Metrics = Mapping[str, Mapping[str, float | None]]
"""Task -> metric -> value."""


def evaluate_run(
    run_dir: Path,
    split: str,
    step: int | str | None,
    processes: int | None = None,
    *,
    as_json: bool = False,
    resamples: int | None = None,
    baseline: Path | None = None,
) -> Evaluation:
    """Evaluate a checkpoint, print what was found and return it.

    Args:
        run_dir: folder of the run.
        split: split of the run's data.
        step: step of the checkpoint; "best": the one that train.select has chosen; None: the last one.
        processes: see `evaluate_checkpoint`.
        as_json: print one JSON object instead of tables.
        resamples: for 95 % intervals by the bootstrap; None: no intervals.
        baseline: a run whose summary has the metrics to compare with.

    Raises:
        UserError: there is no such run, checkpoint or split, it is damaged, or the baseline has no such metrics.
    """
    reference = None if baseline is None else _metrics_of(baseline, split)
    evaluated = evaluate_checkpoint(run_dir, split, step, processes)
    found = evaluated.found
    if evaluated.is_main:
        ends: Intervals = {}
        if resamples is not None and found.predicted is not None:
            ends = intervals(evaluated.tasks, found.predicted, evaluated.metric_names, resamples)
        compared = {}
        if reference is not None:
            compared = {"delta_m_percent": delta_m(found.metrics, reference, evaluated.deciding)}
        if as_json:
            print(json.dumps(_as_json(run_dir, evaluated, ends) | compared, indent=1))
        else:
            _print(run_dir, evaluated, ends, [f"{_words(change)} against {baseline}" for change in compared.values()])
    return found


def _print(run_dir: Path, evaluated: Evaluated, ends: Intervals, lines: Sequence[str]) -> None:
    terminal = Terminal()
    of_sources = {
        f" of source {name}": replace(evaluated, found=found, tasks=_measured(evaluated.tasks, found))
        for name, found in evaluated.found.by_source.items()
    }
    for source, each in {"": evaluated, **of_sources}.items():
        terminal.print(_error_table(run_dir, each, source))
        for table in metric_tables(each.tasks, each.found.metrics, {} if source else ends, terminal):
            terminal.print(table)
    for line in [evaluated.found.too_large, *lines]:
        if line:
            terminal.print(line)


def _words(change: float | None) -> str:
    return "Δm cannot be said: no task in common" if change is None else f"Δm {change:+.2f} %"


def _metrics_of(run_dir: Path, split: str) -> _Metrics:
    """Return the metrics of a finished run.

    Raises:
        UserError: it has none of this split.
    """
    summary = read_run(run_dir).summary
    metrics = {} if summary is None else summary.get("metrics", {})
    if split not in metrics:
        there = ", ".join(metrics) or "none: it has not finished, or is of an older version"
        raise UserError(f"--baseline {run_dir}: its summary.json has no metrics of the split {split!r}; found: {there}")
    return metrics[split]


def _as_json(run_dir: Path, evaluated: Evaluated, ends: Intervals) -> dict[str, Any]:
    found = evaluated.found
    return {
        "run": str(run_dir),
        "step": evaluated.step,
        "split": evaluated.split,
        "averaged": evaluated.averaged,
        "samples": found.samples,
        "errors": found.errors,
        "units": found.units,
        **({"by_class": found.by_class} if found.by_class else {}),
        "losses": found.losses,
        "metrics": {evaluated.split: found.metrics},
        **({"by_source": by_source(found)} if found.by_source else {}),
        **({"intervals": {evaluated.split: ends}} if ends else {}),
        **({"left_out": found.too_large} if found.too_large else {}),
    }


def _measured(tasks: Sequence[Task], found: Evaluation) -> list[Task]:
    return [task for task in tasks if task.name in found.errors]


def _error_table(run_dir: Path, evaluated: Evaluated, source: str) -> Table:
    found = evaluated.found
    averaged = "averaged weights, " if evaluated.averaged else ""
    title = f"{run_dir}, step {evaluated.step}: {averaged}{evaluated.split} split{source}, {found.samples} samples"
    table = Table(title=title)
    for column in ("task", "error or score" if found.by_class else "error", "loss"):
        table.add_column(column, justify="left" if column == "task" else "right")
    for name, error in found.errors.items():
        loss = found.losses[name]
        if error is None or loss is None:
            table.add_row(name, "no labels", "no labels")
        else:
            table.add_row(name, with_unit(error, found.units[name]), f"{loss:.4f}")
        for part, percent in found.by_class.get(name, {}).items():
            table.add_row(f"  {part}", NONE if percent is None else with_unit(percent, PERCENT))
    return table


def metric_tables(tasks: Sequence[Task], found: _Metrics, ends: Intervals, terminal: Terminal) -> list[Table]:
    """Return tables of metrics for each kind of task, with the mean and the worst task below.

    Args:
        tasks: in the order of the rows.
        found: the metrics of each of them.
        ends: intervals of the metrics to print below them, by task and metric.
        terminal: what a table must fit.
    """
    by_kind: dict[str, list[str]] = {}
    for task in tasks:
        by_kind.setdefault(task.kind, []).append(task.name)
    tables: list[Table] = []
    for kind, of_kind in by_kind.items():
        metrics = {task: found[task] for task in of_kind}
        names = [name for name in METRICS if any(name in each for each in metrics.values())]
        tables += _fitting(f"metrics: {kind.replace('_', ' ')}", metrics, names, ends, terminal)
    return tables


def _fitting(title: str, metrics: _Metrics, names: Sequence[str], ends: Intervals, terminal: Terminal) -> list[Table]:
    """Return one table, or several that share the metrics out where one would be wider than the terminal."""
    table = _metric_table(title, metrics, names, ends)
    if len(names) <= 1 or terminal.fits(table):
        return [table]
    half = (len(names) + 1) // 2
    parts = (names[:half], names[half:])
    return [each for part in parts for each in _fitting(title, metrics, part, ends, terminal)]


def _metric_table(title: str, metrics: _Metrics, names: Sequence[str], ends: Intervals) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("task", overflow="fold", max_width=TASK_WIDTH)
    for name in names:
        table.add_column(
            NARROW.get(name, name.removesuffix("_accuracy").replace("_", "\n")), justify="right", no_wrap=True
        )

    def cell(task: str, name: str) -> str:
        value, interval = metrics[task].get(name), ends.get(task, {}).get(name)
        between = "" if interval is None else f"\n{interval[0]:.3f} to {interval[1]:.3f}"
        return NONE if value is None else f"{value:.4f}{between}"

    for task in metrics:
        table.add_row(task, *(cell(task, name) for name in names))
    if len(metrics) > 1:
        over = over_tasks(metrics)
        table.add_section()
        table.add_row("mean", *(f"{over[name].mean:.4f}" if name in over else NONE for name in names))
        table.add_row("worst", *(f"{over[name].worst:.4f}" if name in over else NONE for name in names))
    return table
