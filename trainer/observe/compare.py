"""`paretrain compare`: show runs side by side in the terminal."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from trainer.config.metrics import DECIDING, METRICS
from trainer.errors import UserError
from trainer.observe.over_tasks import ByTask, delta_m, mean_ranks
from trainer.observe.read_run import RunFolder
from trainer.observe.report.tables import NONE, duration
from trainer.observe.settings import differing_settings
from trainer.observe.units import MIOU, PERCENT, Choice, best_in, by_unit, number_in, worst_in
from trainer.plain import one_line, shortened
from trainer.terminal import Terminal

MAX_TASK_COLUMNS = 6
"""With more tasks than this, only the worst and the mean are shown; `paretrain report` shows all."""
MAX_SETTING_COLUMNS = 6
"""With more settings that differ, the others are only named."""
MAX_LETTERS = 24
"""The longest name of a task, unit or setting above a column, and the longest value of a setting."""
MAJORITY = "(always the majority)"
"""The row of the answer that needs no training: the most frequent class."""


def print_comparison(
    runs: Sequence[RunFolder],
    split: str | None = None,
    baseline: Sequence[RunFolder] = (),
    metric: str | None = None,
) -> None:
    """Print the table of `comparison`, in brief where the terminal is too narrow for all of it."""
    terminal = Terminal.for_tables()
    table = comparison(runs, split, baseline, metric)
    if not terminal.fits(table):
        table = comparison(runs, split, baseline, metric, brief=True)
    terminal.print(table)


def comparison(
    runs: Sequence[RunFolder],
    split: str | None = None,
    baseline: Sequence[RunFolder] = (),
    metric: str | None = None,
    *,
    brief: bool = False,
) -> Table:
    """Return a table with one row per run: the settings that differ, errors, changes against a baseline, and costs.

    The best of each column is bold.

    Args:
        runs: to compare.
        split: whose errors to show; None: of each run those that it stands for.
        baseline: runs that give each task a metric to compare with: one run, or several of one task each.
        metric: a key of METRICS, to show in place of the errors; None: the errors.
        brief: leave out the costs, and single tasks where several have the same unit.

    Raises:
        UserError: no run was evaluated on the split, or has the metric, or a baseline has no metrics of the split.
    """
    errors = [run.result.errors if split is None else run.evaluated_on(split).get("errors", {}) for run in runs]
    finals = [{task: error for task, error in found.items() if error is not None} for found in errors]
    if split is not None and not any(finals):
        there = dict.fromkeys(run.result.split for run in runs)
        raise UserError(f"--split {split}: none of these runs was evaluated on it; found: {', '.join(there)}")
    on = split or " / ".join(dict.fromkeys(run.result.split for run in runs))
    units = {task: unit for run in runs for task, unit in run.units.items()}
    metrics = [run.evaluated_on(split or run.result.split).get("metrics", {}) for run in runs]
    majority = _majority(metrics)
    title = f"{on} errors{' and scores' if MIOU in units.values() else ''}"
    tasks = list(dict.fromkeys(task for run in runs for task in run.tasks))
    if metric is not None:
        finals, majority, title = _values_of(metric, metrics), {}, f"{on} {metric}"
        tasks = [task for task in tasks if any(task in final for final in finals)]
        units = units if METRICS[metric].has_unit else dict.fromkeys(tasks, "")
    columns = _Columns(Table(title=title, box=SIMPLE_HEAD, padding=0), has_majority=bool(majority))
    columns.add_texts("run", [run.name for run in runs], MAJORITY)
    differing = differing_settings(runs)
    for key, settings in list(differing.items())[:MAX_SETTING_COLUMNS]:
        columns.add_texts(shortened(one_line(key), MAX_LETTERS), [_setting(value) for value in settings])
    _add_errors(columns, finals, units, majority, tasks, brief, metric)
    if baseline:
        changes, ranks = _against(runs, baseline, on)
        columns.add_numbers(("change", "Δm, %"), changes, "{:+.2f}".format, max)
        columns.add_numbers(("mean", "rank"), ranks, "{:.2f}".format, min)
    if not brief:
        columns.add_numbers(("steps",), [run.latest("steps") or run.latest("step") for run in runs], "{:,}".format)
        columns.add_numbers(("processes",), [run.world_size for run in runs], "{:,}".format)
        columns.add_numbers(("time",), [run.latest("wall_seconds") or run.latest("seconds") for run in runs], duration)
        columns.add_numbers(
            ("samples/s",), [run.latest("samples_per_second") for run in runs], "{:,.0f}".format, best=max
        )
    captions = {
        "other settings that differ": list(differing)[MAX_SETTING_COLUMNS:],
        "not finished": [run.name for run in runs if run.summary is None],
    }
    return columns.table("; ".join(f"{what}: {', '.join(names)}" for what, names in captions.items() if names))


class _Columns:
    """The columns of the table: a cell for each run, and one for the majority's answer where it has a row.

    Args:
        table: empty; gets the columns at once, and the rows at the end.
        has_majority: whether there is a row of the majority's answer.
    """

    def __init__(self, table: Table, has_majority: bool) -> None:
        self._table, self._has_majority = table, has_majority
        self._cells: list[Sequence[str | Text]] = []

    def add_texts(self, heading: str, texts: Sequence[str], of_majority: str = "") -> None:
        """Add a column of texts."""
        self._table.add_column(heading, overflow="fold")
        self._cells.append([*texts, *([of_majority] if self._has_majority else [])])

    def add_numbers(
        self,
        title: Sequence[str],
        values: Sequence[float | None],
        form: Callable[[float], str],
        best: Choice | None = None,
        of_majority: float | None = None,
    ) -> None:
        """Add a column of numbers, whose best is bold.

        Args:
            title: the lines of its heading.
            values: of the runs.
            form: writes one.
            best: which is the best; None: none is.
            of_majority: the number of the majority's answer.
        """
        heading = "\n".join(shortened(one_line(line), MAX_LETTERS) for line in title)
        self._table.add_column(heading, justify="right", no_wrap=True)
        below = [NONE if of_majority is None else form(of_majority)] if self._has_majority else []
        self._cells.append([*_cells(values, form, best), *below])

    def table(self, caption: str) -> Table:
        """Return the table with its rows, and a caption where there is something to say."""
        for row in zip(*self._cells, strict=True):
            self._table.add_row(*row)
        self._table.caption = caption or None
        return self._table


def _add_errors(
    columns: _Columns,
    finals: Sequence[Mapping[str, float]],
    units: Mapping[str, str],
    majority: Mapping[str, float],
    tasks: Sequence[str],
    brief: bool,
    metric: str | None,
) -> None:
    """Add the errors of single tasks, where there are few, and the worst and the mean of those of each unit."""
    for unit, group in by_unit(tasks, units).items():
        # Only for runs with all these tasks: a mean over fewer of them is not comparable.
        found = [[final[task] for task in group] if set(group) <= final.keys() else [] for final in finals]
        trivial = [majority[task] for task in group] if unit == PERCENT and set(group) <= majority.keys() else []
        form: Callable[[float], str] = partial(number_in, unit)
        best, worst = best_in(unit), worst_in(unit)
        if metric is not None:
            form, best, worst = "{:.4f}".format, METRICS[metric].best, METRICS[metric].worst
        if len(tasks) <= MAX_TASK_COLUMNS and not (brief and len(group) > 1):
            for task in group:
                of_majority = majority.get(task) if unit == PERCENT else None
                columns.add_numbers((task, unit), [final.get(task) for final in finals], form, best, of_majority)
        if len(group) > 1:
            reduced = {"worst": worst, "mean": fmean}
            for name, reduce in reduced.items():
                values = [reduce(each) if each else None for each in found]
                columns.add_numbers((name, unit), values, form, best, reduce(trivial) if trivial else None)


def _values_of(metric: str, metrics: Sequence[ByTask]) -> list[dict[str, float]]:
    """Return a metric of each run by the names of the tasks that have it."""
    found = [
        {task: value for task, values in of_run.items() if (value := values.get(metric)) is not None}
        for of_run in metrics
    ]
    if not any(found):
        there = sorted({name for of_run in metrics for values in of_run.values() for name in values})
        raise UserError(f"--metric {metric}: none of these runs has it there; found: {', '.join(there) or 'none'}")
    return found


def _against(
    runs: Sequence[RunFolder], baseline: Sequence[RunFolder], split: str
) -> tuple[list[float | None], list[float | None]]:
    """Return each run's mean change against the baseline in percent, better: positive; and its mean rank."""
    metrics = [run.evaluated_on(split).get("metrics", {}) for run in runs]
    reference: dict[str, Mapping[str, float | None]] = {}
    for run in baseline:
        found = run.evaluated_on(split).get("metrics", {})
        if not found:
            raise UserError(f"--baseline {run.path}: it has no metrics of the split {split}. Type --split with its own")
        reference |= found
    chosen = {task: name for run in runs for task, name in run.evaluated_on(split).get("deciding", {}).items()}
    deciding = {
        task: name
        for task, values in reference.items()
        # Records of older versions do not say which metric decides.
        if (name := chosen.get(task) or next((name for name in DECIDING.values() if name in values), None))
    }
    return [delta_m(found, reference, deciding) for found in metrics], mean_ranks(metrics, deciding)


def _majority(metrics: Sequence[ByTask]) -> dict[str, float]:
    """Return the error in percent of always answering the most frequent class, for the tasks that have classes."""
    name = "majority_accuracy"
    return {
        task: 100 * (1 - value)
        for found in metrics
        for task, values in found.items()
        if (value := values.get(name)) is not None
    }


def _setting(value: Any) -> str:
    return NONE if value is None else shortened(one_line(str(value)), MAX_LETTERS)


def _cells(values: Sequence[float | None], form: Callable[[float], str], best_of: Choice | None) -> list[str | Text]:
    known = [value for value in values if value is not None]
    best = form(best_of(known)) if best_of and len(known) > 1 else None
    cells = [NONE if value is None else form(value) for value in values]
    return [Text(cell, style="bold") if cell == best else cell for cell in cells]
