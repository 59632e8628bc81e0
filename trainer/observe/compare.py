"""`paretrain compare`: show runs side by side in the terminal."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from statistics import fmean

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from trainer.observe.read_run import RunFolder
from trainer.observe.report.tables import NONE, duration
from trainer.observe.units import MIOU, Choice, best_in, by_unit, number_in, worst_in
from trainer.plain import one_line, shortened
from trainer.terminal import Terminal

MAX_TASK_COLUMNS = 6
"""With more tasks than this, only the worst and the mean are shown; `paretrain report` shows all."""
MAX_LETTERS = 24
"""The longest name of a task or unit above a column."""
WIDTH = 200
"""Columns of the output when it goes to a file, which has no width of its own."""


def print_comparison(runs: Sequence[RunFolder]) -> None:
    """Print the table of `comparison`."""
    is_terminal = Terminal().is_terminal
    Terminal(width=None if is_terminal else WIDTH).print(comparison(runs))


def comparison(runs: Sequence[RunFolder]) -> Table:
    """Return a table with one row per run: final errors by task, their worst and mean, time and speed.

    The best of each column is bold.
    """
    tasks = list(dict.fromkeys(task for run in runs for task in run.tasks))
    units = {task: unit for run in runs for task, unit in run.units.items()}
    finals = [{task: error for task, error in run.result.errors.items() if error is not None} for run in runs]
    title = "test errors and scores" if MIOU in units.values() else "test errors"
    table = Table(title=title, box=SIMPLE_HEAD, padding=0)
    columns: list[Sequence[str | Text]] = [[run.name for run in runs]]
    table.add_column("run", overflow="fold")

    def add(
        title: Sequence[str], values: Iterable[float | None], form: Callable[[float], str], best: Choice | None
    ) -> None:
        heading = "\n".join(shortened(one_line(line), MAX_LETTERS) for line in title)
        table.add_column(heading, justify="right", no_wrap=True)
        columns.append(_cells(list(values), form, best))

    for unit, group in by_unit(tasks, units).items():
        # Only for runs with all these tasks: a mean over fewer of them is not comparable.
        found = [[final[task] for task in group] if set(group) <= final.keys() else [] for final in finals]
        form, best = partial(number_in, unit), best_in(unit)
        if len(tasks) <= MAX_TASK_COLUMNS:
            for task in group:
                add((task, unit), [final.get(task) for final in finals], form, best)
        if len(group) > 1:
            add(("worst", unit), [worst_in(unit)(errors) if errors else None for errors in found], form, best)
            add(("mean", unit), [fmean(errors) if errors else None for errors in found], form, best)
    add(("steps",), [run.latest("steps") or run.latest("step") for run in runs], "{:,}".format, None)
    add(("processes",), [run.world_size for run in runs], "{:,}".format, None)
    add(("time",), [run.latest("wall_seconds") or run.latest("seconds") for run in runs], duration, None)
    add(("samples/s",), [run.latest("samples_per_second") for run in runs], "{:,.0f}".format, max)
    for row in zip(*columns, strict=True):
        table.add_row(*row)
    unfinished = [run.name for run in runs if run.summary is None]
    if unfinished:
        table.caption = f"not finished: {', '.join(unfinished)}"
    return table


def _cells(values: Sequence[float | None], form: Callable[[float], str], best_of: Choice | None) -> list[str | Text]:
    known = [value for value in values if value is not None]
    best = form(best_of(known)) if best_of and len(known) > 1 else None
    cells = [NONE if value is None else form(value) for value in values]
    return [Text(cell, style="bold") if cell == best else cell for cell in cells]
