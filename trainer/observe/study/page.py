"""Write what a study has found: one page, one table in CSV, and all numbers in JSON."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from trainer.config.metrics import METRICS
from trainer.files import make_folder, replace
from trainer.observe.report.figures import MAX_LABELLED_TASKS
from trainer.observe.report.frame import document, section
from trainer.observe.report.panels import Panel
from trainer.observe.report.tables import text
from trainer.observe.study.figures import Cloud, critical_differences, forest, pareto, radar
from trainer.observe.study.results import Method, Results
from trainer.observe.study.tables import (
    MAX_TASK_COLUMNS,
    as_json,
    csv_rows,
    difference_table,
    method_table,
    task_table,
    titled,
)

NUM_RADAR_METHODS = 3
PAGE, TABLE, NUMBERS = "study.html", "study.csv", "study.json"


def write_study(results: Results, out: Path) -> Path:
    """Write the page, the table and the numbers into a folder. Return the path of the page.

    Raises:
        UserError: they cannot be written.
    """
    make_folder(out)
    rows = io.StringIO()
    csv.writer(rows, lineterminator="\n").writerows(csv_rows(results))
    replace(out / TABLE, rows.getvalue().encode())
    replace(out / NUMBERS, f"{json.dumps(as_json(results), indent=1, ensure_ascii=False)}\n".encode())
    replace(out / PAGE, study_page(results).encode())
    return out / PAGE


def study_page(results: Results) -> str:
    """Return the page."""
    title = text(results.title)
    return document(title, f"<h1>{title}</h1>" + "".join(study_body(results)))


def study_body(results: Results) -> Iterator[str]:
    """Yield all of the page but its title, as HTML."""
    num_seeds, num_tasks = len(results.seeds), len(results.tasks)
    yield (
        f"<p>{_count(len(results.methods), 'method')}, {_count(num_tasks, 'task')}, {_count(num_seeds, 'seed')}; "
        f"metrics of the {text(results.split)} split. Numbers are means over the seeds ± their standard error; "
        f"bold: the best method, and those that {_count(num_seeds, 'seed')} cannot tell from it.</p>"
    )
    if num_seeds == 1:
        yield '<p class="notice">One seed tells nothing apart: no number here says that one method is better.</p>'
    if results.left_out:
        names = text(", ".join(results.left_out[:5])) + (", ..." if len(results.left_out) > 5 else "")
        yield f"<p>{_count(len(results.left_out), 'task')} without a defined metric are left out: {names}.</p>"
    yield method_table(results)
    against = text(results.baseline.name)
    tuned = " The last columns are what tuning chose." if any(method.chosen for method in results.rows) else ""
    yield (
        f"<p>Δm is the mean over the tasks of how much better a method is than {against}, in percent; worse is "
        "negative. The rank is among the methods, as a mean over tasks and seeds. Time is that of training, on a "
        f"machine that several runs may have shared; of tasks alone, that of all their runs.{tuned}</p>"
    )
    yield from (f'<p class="notice">{text(said)}</p>' for said in _ends_of_the_grid(results))
    changes = {method.name: results.changes(method) for method in results.rows}
    known = {name: values_S for name, values_S in changes.items() if not np.isnan(values_S).any()}
    if known and (unknown := [name for name in changes if name not in known]):
        yield (
            f'<p class="notice">Without Δm, as a metric that decides is not defined for all seeds: '
            f"{text(', '.join(unknown))}.</p>"
        )
    if len(known) > 1:
        compared = {method.name: known[method.name] for method in results.methods if method.name in known}
        svg = forest(known, results.like_the_best(compared), f"Δm against {results.baseline.name}, %")
        yield section(
            "Differences",
            "Dots: the seeds. Thick: standard error of the mean. Thin: 95 % interval by Student's t, cut at the edge. "
            "Blue: the best method, and those that the seeds do not tell from it.",
            [Panel("", svg, size="page")],
        )
        yield difference_table(results)
        yield (
            "<p>Differences are paired by seed. Two methods count as told apart where both intervals leave out 0: the "
            "bootstrap alone is too narrow for a few seeds. Each row is a comparison of its own; one in twenty of "
            "equal methods would be called different.</p>"
        )
    yield _ranks(results)
    if num_tasks == 2:
        yield _plane(results)
    if num_tasks > MAX_TASK_COLUMNS:
        yield _tasks(results)


def _ends_of_the_grid(results: Results) -> Iterator[str]:
    """Yield for each key how many methods chose the largest number that was tried, or the smallest.

    Of fewer than three values each is an end, and nothing is said.
    """
    for key, values in results.grid.items():
        if len(values) < 3 or not all(isinstance(value, int | float) for value in values):
            continue
        for end, beyond in (max(values), "larger"), (min(values), "smaller"):
            if there := sum(method.chosen.get(key) == end for method in results.methods):
                yield (
                    f"{there:,} of {_count(len(results.methods), 'method')} chose {key}={end:g}, an end of the grid: "
                    f"{beyond} values were not tried, and may be better."
                )


def _ranks(results: Results) -> str:
    ranks = results.mean_ranks
    if len(ranks) < 2 or np.isnan(list(ranks.values())).any():
        return ""
    num_blocks = max(len(results.tasks), len(results.seeds))
    what = "tasks" if len(results.tasks) >= len(results.seeds) else "seeds"
    return section(
        "Ranks",
        "Mean ranks over tasks and seeds. A bar joins methods that Nemenyi's test does not tell apart at 5 % (Demsar "
        f"2006). It counts the {num_blocks:,} {what} as independent, since results of one task, or of one seed, are "
        "not.",
        [Panel("", critical_differences(ranks, num_blocks), size="page")],
    )


def _tasks(results: Results) -> str:
    """Return a radar of the tasks, where they are not too many for one, and the folded table of all."""
    drawn = _radar(results) if len(results.tasks) <= MAX_LABELLED_TASKS else ""
    table = f"<details><summary>All {len(results.tasks):,} tasks</summary>{task_table(results)}</details>"
    return (drawn or "<h2>Tasks</h2>") + table


def _radar(results: Results) -> str:
    """Return the radar of the best methods, and of the first one, which is mostly the one to beat."""
    methods = {method.name: method for method in results.methods if method is not results.baseline}
    changes = {name: float(results.changes(method).mean()) for name, method in methods.items()}
    known = sorted((name for name in changes if not np.isnan(changes[name])), key=lambda name: -changes[name])
    best, first = known[:NUM_RADAR_METHODS], results.methods[0].name
    if not best:
        return ""
    names = best if first in best or first not in known else [*best, first]
    svg, legend = radar({name: results.task_changes(methods[name]) for name in names}, results.tasks)
    who = "the best method by Δm" if len(best) == 1 else f"the {len(best)} best methods by Δm"
    return section(
        "Tasks",
        f"How much better each task is than with {text(results.baseline.name)}, the dark circle, in percent: better is "
        f"further out. Drawn are {who}{'' if names == best else f', and {text(first)}'}. Bands: ± 1 standard error. "
        f"The order is that of {text(best[0])}.",
        [Panel("", svg, legend, size="page")],
    )


def _plane(results: Results) -> str:
    def cloud(method: Method) -> Cloud:
        points = [method.values(task, metric) for task, metric in results.deciding.items()]
        return Cloud(method.name, np.stack(points, axis=1))

    def is_whole(found: Cloud) -> bool:
        return not np.isnan(found.points_S2).any()

    methods = [cloud(method) for method in results.methods]
    if not all(map(is_whole, methods)):
        return ""
    front = list(filter(is_whole, map(cloud, results.front)))
    signs_2 = np.array([1 if METRICS[metric].best is max else -1 for metric in results.deciding.values()])
    alone = cloud(results.alone) if results.alone else None
    alone_2 = alone.points_S2.mean(axis=0) if alone and is_whole(alone) else None
    labels = [titled(task, metric) for task, metric in results.deciding.items()]
    svg, legend = pareto(methods, front, alone_2, labels, signs_2)
    fixed = "Grey: fixed weights, and the front that they reach; those outside the view are left out. "
    return section(
        "Both tasks",
        "Better is right and up. Dots: the seeds. Ellipses: the standard errors of the mean; their shadows on the axes "
        "are ± 1 standard error. "
        + (fixed if front else "")
        + ("Dashed: each task alone." if alone_2 is not None else ""),
        [Panel("", svg, legend, size="page")],
    )


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
